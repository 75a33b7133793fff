"""The tables of a study: cells, rows, and CSV files that are byte-identical for equal studies.

A *cell* is (task, arm, strength, seed). Rows are written in one order (task by name, arms in the order of `ARMS`,
strengths as numbers, seeds, then what the table adds) and numbers in one format (`repr` of the float, nothing for
None and NaN), so that the order in which cells were run leaves no trace. Text that a spreadsheet would take for a
formula has an apostrophe before it, which the readers here and in the report take away.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..guards.texts import cell_text, spreadsheet_cell
from ..records.files import write_text
from .arms import LABELS

ARMS = tuple(LABELS)
ALL_SEEDS: Literal["all"] = "all"
Row = TypeVar("Row")


class TableError(ValueError):
    """A table of a study that cannot be what it should be; says where."""


@dataclass(frozen=True)
class CellKey:
    """One policy of a study, trained or (the reference) only sampled. `strength` is text, "" for the reference."""

    task: str
    arm: str
    strength: str
    seed: int

    def __post_init__(self) -> None:
        if self.arm not in LABELS:
            raise TableError(f"arm {self.arm!r} is none of {', '.join(ARMS)}")
        if (self.arm == "reference") != (self.strength == ""):
            raise TableError(f"the reference, and only it, has no strength; got {self.arm!r} with {self.strength!r}")
        strength_order(self.strength)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.task, ARMS.index(self.arm), strength_order(self.strength), self.seed)

    def __lt__(self, other: CellKey) -> bool:
        return self.order < other.order

    def __str__(self) -> str:
        parts = [self.task, self.arm] if self.strength == "" else [self.task, self.arm, self.strength]
        return f"{'/'.join(parts)}/seed {self.seed}"


def strength_order(strength: str) -> tuple[float, str]:
    """What strengths are sorted by: their number; text breaks ties ("0.10" and "0.1"). "" comes first."""
    try:
        return (float(strength) if strength else -math.inf, strength)
    except ValueError:
        raise TableError(f"strength {strength!r} is not a number") from None


def prompt_order(prompt_id: str) -> tuple[int, int, str]:
    """Numbers by value, then everything else by its text."""
    plain = prompt_id.isascii() and prompt_id.isdigit()
    return (0, int(prompt_id), prompt_id) if plain else (1, 0, prompt_id)


@dataclass(frozen=True)
class ResultRow:
    """One number of a cell, or of all seeds of (task, arm, strength), with its 95 % interval."""

    task: str
    arm: str
    strength: str
    seed: int | Literal["all"]
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        pooled = self.seed == ALL_SEEDS
        key = CellKey(self.task, self.arm, self.strength, 0 if pooled else int(self.seed))
        return (*key.order[:3], pooled, key.seed, self.metric)


@dataclass(frozen=True)
class PromptRow:
    cell: CellKey
    prompt_id: str
    metric: str
    value: float | None

    @property
    def order(self) -> tuple[Any, ...]:
        return (*self.cell.order, prompt_order(self.prompt_id), self.metric)


@dataclass(frozen=True)
class ResponseRow:
    cell: CellKey
    prompt_id: str
    prompt: str
    sample: int
    text: str
    reward: float | None
    tokens: int
    finished: bool
    reverse_kl: float | None = None
    mode: str | None = None

    @property
    def order(self) -> tuple[Any, ...]:
        return (*self.cell.order, prompt_order(self.prompt_id), self.sample)


@dataclass(frozen=True)
class CurveRow:
    cell: CellKey
    step: int
    completions: int | None
    metric: str
    value: float | None

    @property
    def order(self) -> tuple[Any, ...]:
        return (*self.cell.order, self.metric, self.step)


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
        found: dict[CellKey, dict[str, dict[str, float]]] = {}
        for row in rows:
            values = found.setdefault(row.cell, {}).setdefault(row.metric, {})
            if row.prompt_id in values:
                raise TableError(f"{row.cell}: prompt {row.prompt_id!r} has {row.metric} twice")
            values[row.prompt_id] = math.nan if row.value is None else row.value
        ids: dict[str, set[str]] = {}
        for cell, metrics in found.items():
            ids.setdefault(cell.task, set()).update(*metrics.values())
        table = cls({task: tuple(sorted(ids[task], key=prompt_order)) for task in sorted(ids)})
        for cell in sorted(found):
            table.cells[cell] = {
                metric: _aligned(cell, metric, found[cell][metric], table.prompts[cell.task])
                for metric in sorted(found[cell])
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
        found = (self.cells[cell].get(metric) for cell in self.of(task))
        return any(values is not None and bool(np.isfinite(values).any()) for values in found)


def _aligned(cell: CellKey, metric: str, values: dict[str, float], prompts: Sequence[str]) -> NDArray[np.float64]:
    lacking = [prompt for prompt in prompts if prompt not in values]
    if lacking:
        raise TableError(
            f"{cell}: {metric} has {len(values)} of the task's {len(prompts)} prompts; "
            f"{lacking[0]!r} is missing. Write undefined values as empty ones"
        )
    return np.array([values[prompt] for prompt in prompts], dtype=np.float64)


_CELL = ("task", "arm", "strength", "seed")
RESULT_COLUMNS = (*_CELL, "metric", "value", "low", "high")
PROMPT_COLUMNS = (*_CELL, "prompt_id", "metric", "value")
RESPONSE_COLUMNS = (
    *_CELL, "prompt_id", "prompt", "sample", "text", "reward", "tokens", "finished", "reverse_kl", "mode",
)  # fmt: skip
CURVE_COLUMNS = (*_CELL, "step", "completions", "metric", "value")


def write_results(path: Path, rows: Iterable[ResultRow]) -> None:
    _write(path, RESULT_COLUMNS, rows)


def write_prompts(path: Path, table: PromptTable) -> None:
    _write(path, PROMPT_COLUMNS, table.rows())


def write_responses(path: Path, rows: Iterable[ResponseRow]) -> None:
    _write(path, RESPONSE_COLUMNS, rows)


def write_curves(path: Path, rows: Iterable[CurveRow]) -> None:
    _write(path, CURVE_COLUMNS, rows)


def read_results(path: Path) -> list[ResultRow]:
    def build(line: Mapping[str, str]) -> ResultRow:
        seed = ALL_SEEDS if line["seed"] == ALL_SEEDS else int(line["seed"])
        numbers = (_number(line[name]) for name in ("value", "low", "high"))
        return ResultRow(line["task"], line["arm"], line["strength"], seed, line["metric"], *numbers)

    return _read(path, RESULT_COLUMNS, build)


def read_prompts(path: Path) -> PromptTable:
    return PromptTable.from_rows(
        _read(path, PROMPT_COLUMNS, lambda v: PromptRow(_cell(v), v["prompt_id"], v["metric"], _number(v["value"])))
    )


def read_responses(path: Path) -> list[ResponseRow]:
    def build(line: Mapping[str, str]) -> ResponseRow:
        return ResponseRow(
            _cell(line), line["prompt_id"], line["prompt"], int(line["sample"]), line["text"], _number(line["reward"]),
            int(line["tokens"]), _truth(line["finished"]), _number(line["reverse_kl"]), line["mode"] or None,
        )  # fmt: skip

    return _read(path, RESPONSE_COLUMNS, build)


def read_curves(path: Path) -> list[CurveRow]:
    def build(line: Mapping[str, str]) -> CurveRow:
        completions = int(line["completions"]) if line["completions"] else None
        return CurveRow(_cell(line), int(line["step"]), completions, line["metric"], _number(line["value"]))

    return _read(path, CURVE_COLUMNS, build)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Any]) -> None:
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(columns)
    for row in sorted(rows, key=lambda row: row.order):
        cell = getattr(row, "cell", row)
        writer.writerow([_text(getattr(cell if name in _CELL else row, name)) for name in columns])
    write_text(path, "".join(lines.written))


class _Lines:
    """Turns the writer's line ends into plain ones.

    The writer quotes only those line breaks that are part of its own line end, and a carriage return without quotes
    reads as the end of a line; hence it is told to use both.
    """

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return spreadsheet_cell(value) if isinstance(value, str) else str(value)


def _read(path: Path, columns: Sequence[str], build: Callable[[Mapping[str, str]], Row]) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header) != tuple(columns):
            raise TableError(f"{path}: the first line is {','.join(header)!r}, expected {','.join(columns)!r}")
        rows = []
        for line in reader:
            try:
                rows.append(build(dict(zip(columns, map(cell_text, line), strict=True))))
            except ValueError as error:
                raise TableError(f"{path}:{reader.line_num}: {error}") from None
    return rows


def _cell(line: Mapping[str, str]) -> CellKey:
    return CellKey(line["task"], line["arm"], line["strength"], int(line["seed"]))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise TableError(f"finished is {text!r}, expected 'true' or 'false'")
    return text == "true"
