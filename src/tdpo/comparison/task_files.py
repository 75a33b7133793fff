"""The files that a study's tasks name. A cell keeps their digests, so that a later change of a file is reported.

It is told and not refused: a function that failed in some cells is there to be mended, and the others stay as good as
they were where the change does not touch them. Only whoever made it can know that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Study, Task
from ..records.json_files import read_json
from ..records.names import CELL_FILE
from ..records.study_tables import CellKey
from ..runs.inputs import file_digest, file_of_function
from .cells import StudyFiles, task_of


@dataclass(frozen=True)
class ChangedInput:
    """A file that has changed since some finished cells were made with it."""

    file: str
    cells: list[str]

    @property
    def sentence(self) -> str:
        """What has changed, and what to do about it."""
        first, count = self.cells[0], len(self.cells)
        runs, them = ("a run", "it") if count == 1 else (f"{count} runs", "them")
        more = "" if count == 1 else " and others"
        return (
            f"{self.file} has changed since {runs} finished with it ({first}{more}). What {them} found is kept; where "
            f"the change matters to {them}, delete the folders under cells/ (and its "
            "file in pairs/, for preferences made anew) and give the command again"
        )

    def as_dict(self) -> dict[str, object]:
        """The entry in about.json."""
        return {"file": self.file, "cells": self.cells, "sentence": self.sentence}


def inputs_of(task: Task) -> dict[str, str]:
    """SHA-256 of each file that a task names (prompts, rows, files of functions), by the name in the study."""
    names: list[str | None] = []
    if task.environment is not None:
        chosen = task.environment
        names = [chosen.prompts, chosen.held_out, file_of_function(chosen.reward), file_of_function(chosen.mode_of)]
    if task.data is not None:
        names = [task.data.train, task.data.eval]
    files = {name: Path(name).expanduser() for name in names if name is not None}
    return {name: file_digest(path) for name, path in files.items() if path.is_file()}


def changed_inputs(study: Study, files: StudyFiles, done: Sequence[CellKey]) -> list[ChangedInput]:
    """Files that have changed since finished cells were made with them, in the order of the tasks."""
    now = {task.label: inputs_of(task) for task in study.tasks}
    cells_by_file: dict[str, list[str]] = {}
    for cell in done:
        before = read_json(files.cell(cell) / CELL_FILE).get("inputs", {})
        current = now[task_of(study, cell.task).label]
        for name, digest in before.items():
            if current.get(name) != digest:
                cells_by_file.setdefault(name, []).append(files.name(cell))
    return [ChangedInput(name, cells) for name, cells in cells_by_file.items()]
