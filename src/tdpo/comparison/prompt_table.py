"""prompts.csv as arrays: the values of every cell and metric, aligned over the prompts of a task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..records.study_tables import CellKey, PromptRow, TableError, prompt_order, read_prompt_rows


@dataclass
class PromptTable:
    """Per cell and metric an array [prompts] aligned over the task's prompts, NaN where undefined.

    `prompts[task]` are the prompt ids in the order of the arrays. All cells of a task have the same prompts: intervals
    are paired by them. `clusters[task][prompt]` names the group of a prompt, such as its theme; a prompt without an
    entry is a group of its own. `strength_kinds[arm]` says what the strengths of an arm are, as in `PromptRow`.
    """

    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells: dict[CellKey, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    clusters: dict[str, dict[str, str]] = field(default_factory=dict)
    strength_kinds: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, rows: Iterable[PromptRow]) -> PromptTable:
        """Raises TableError where a (cell, metric) lacks a prompt of its task, or has one twice; and where a prompt
        has two clusters, or an arm two kinds of strengths."""
        by_cell: dict[CellKey, dict[str, dict[str, float]]] = {}
        clusters: dict[str, dict[str, str]] = {}
        strength_kinds: dict[str, str] = {}
        for row in rows:
            if row.cluster:
                _keep(clusters.setdefault(row.cell.task, {}), row.prompt_id, row.cluster, f"prompt of {row.cell.task}")
            if row.strength_kind:
                _keep(strength_kinds, row.cell.arm, row.strength_kind, "arm")
            values = by_cell.setdefault(row.cell, {}).setdefault(row.metric, {})
            if row.prompt_id in values:
                raise TableError(f"{row.cell}: prompt {row.prompt_id!r} has {row.metric} twice")
            values[row.prompt_id] = math.nan if row.value is None else row.value
        ids: dict[str, set[str]] = {}
        for cell, metrics in by_cell.items():
            ids.setdefault(cell.task, set()).update(*metrics.values())
        prompts = {task: tuple(sorted(ids[task], key=prompt_order)) for task in sorted(ids)}
        table = cls(prompts, clusters=clusters, strength_kinds=strength_kinds)
        for cell in sorted(by_cell):
            table.cells[cell] = {
                metric: _aligned(cell, metric, by_cell[cell][metric], table.prompts[cell.task])
                for metric in sorted(by_cell[cell])
            }
        return table

    def rows(self) -> Iterator[PromptRow]:
        for cell, metrics in self.cells.items():
            for metric, values in metrics.items():
                clusters, kind = self.clusters.get(cell.task, {}), self.strength_kinds.get(cell.arm, "")
                for prompt_id, value in zip(self.prompts[cell.task], values, strict=True):
                    number = None if np.isnan(value) else float(value)
                    yield PromptRow(cell, prompt_id, metric, number, clusters.get(prompt_id, ""), kind)

    def tasks(self) -> list[str]:
        return sorted(self.prompts)

    def of(self, task: str, arm: str | None = None) -> list[CellKey]:
        """The task's cells (of one arm), in the order of the study."""
        return sorted(cell for cell in self.cells if cell.task == task and arm in (None, cell.arm))

    def measured(self, task: str, metric: str) -> bool:
        """Whether any cell of the task has a value of the metric."""
        values_of_cells = (self.cells[cell].get(metric) for cell in self.of(task))
        return any(values is not None and bool(np.isfinite(values).any()) for values in values_of_cells)


def _keep(entries: dict[str, str], key: str, value: str, what: str) -> None:
    """Set an entry, once; raise TableError for another value."""
    if entries.setdefault(key, value) != value:
        raise TableError(f"{what} {key!r} is given as {entries[key]!r} and as {value!r}")


def _aligned(cell: CellKey, metric: str, values: dict[str, float], prompts: Sequence[str]) -> NDArray[np.float64]:
    lacking = [prompt for prompt in prompts if prompt not in values]
    if lacking:
        raise TableError(
            f"{cell}: {metric} has {len(values)} of the task's {len(prompts)} prompts; "
            f"{lacking[0]!r} is missing. Write undefined values as empty ones"
        )
    return np.array([values[prompt] for prompt in prompts], dtype=np.float64)


def read_prompt_table(path: Path) -> PromptTable:
    """The table in a study's prompts.csv. Raises TableError where it is none."""
    return PromptTable.from_rows(read_prompt_rows(path))
