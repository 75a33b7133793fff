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
    are paired by them.
    """

    prompts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells: dict[CellKey, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, rows: Iterable[PromptRow]) -> PromptTable:
        """Raises TableError where a (cell, metric) lacks a prompt of its task, or has one twice."""
        by_cell: dict[CellKey, dict[str, dict[str, float]]] = {}
        for row in rows:
            values = by_cell.setdefault(row.cell, {}).setdefault(row.metric, {})
            if row.prompt_id in values:
                raise TableError(f"{row.cell}: prompt {row.prompt_id!r} has {row.metric} twice")
            values[row.prompt_id] = math.nan if row.value is None else row.value
        ids: dict[str, set[str]] = {}
        for cell, metrics in by_cell.items():
            ids.setdefault(cell.task, set()).update(*metrics.values())
        table = cls({task: tuple(sorted(ids[task], key=prompt_order)) for task in sorted(ids)})
        for cell in sorted(by_cell):
            table.cells[cell] = {
                metric: _aligned(cell, metric, by_cell[cell][metric], table.prompts[cell.task])
                for metric in sorted(by_cell[cell])
            }
        return table

    def rows(self) -> Iterator[PromptRow]:
        for cell, metrics in self.cells.items():
            for metric, values in metrics.items():
                for prompt_id, value in zip(self.prompts[cell.task], values, strict=True):
                    yield PromptRow(cell, prompt_id, metric, None if np.isnan(value) else float(value))

    def tasks(self) -> list[str]:
        return sorted(self.prompts)

    def of(self, task: str, arm: str | None = None) -> list[CellKey]:
        """The task's cells (of one arm), in the order of the study."""
        return sorted(cell for cell in self.cells if cell.task == task and arm in (None, cell.arm))

    def measured(self, task: str, metric: str) -> bool:
        """Whether any cell of the task has a value of the metric."""
        values_of_cells = (self.cells[cell].get(metric) for cell in self.of(task))
        return any(values is not None and bool(np.isfinite(values).any()) for values in values_of_cells)


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
