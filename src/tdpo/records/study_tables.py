"""The tables of a study: cells, rows, columns, and the CSV files, which are byte-identical for equal studies.

A *cell* is (task, arm, strength, seed). Rows are written in one order (task by name, arms in the order of
`methods.ARMS`, strengths as numbers, seeds, then what the table adds), so that the order in which cells were run leaves
no trace. The readers here are strict; a report reads the same columns as far as they go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..methods import ARMS, REFERENCE
from .csv_files import csv_lines, write_csv

ALL_SEEDS: Literal["all"] = "all"
Row = TypeVar("Row")
_PLACES = {arm: place for place, arm in enumerate(ARMS)}


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
        if self.arm not in ARMS:
            raise TableError(f"arm {self.arm!r} is none of {', '.join(ARMS)}")
        if (self.arm == REFERENCE) != (self.strength == ""):
            raise TableError(f"the reference, and only it, has no strength; got {self.arm!r} with {self.strength!r}")
        strength_order(self.strength)

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.task, _PLACES[self.arm], strength_order(self.strength), self.seed)

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
    """A value of one prompt. `cluster` names the group of prompts that it belongs to, "" for one of its own.

    `strength_kind` is what the cell's strength is: "strength", "target" (nats per response at which a KL was held),
    "n", "temperature", or "" (the reference, and tables of earlier versions).
    """

    cell: CellKey
    prompt_id: str
    metric: str
    value: float | None
    cluster: str = ""
    strength_kind: str = ""

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


_CELL = ("task", "arm", "strength", "seed")
RESULT_COLUMNS = (*_CELL, "metric", "value", "low", "high")
OLD_PROMPT_COLUMNS = (*_CELL, "prompt_id", "metric", "value")
PROMPT_COLUMNS = (*OLD_PROMPT_COLUMNS, "cluster", "strength_kind")
RESPONSE_COLUMNS = (
    *_CELL, "prompt_id", "prompt", "sample", "text", "reward", "tokens", "finished", "reverse_kl", "mode",
)  # fmt: skip
CURVE_COLUMNS = (*_CELL, "step", "completions", "metric", "value")


def write_results(path: Path, rows: Iterable[ResultRow]) -> None:
    _write(path, RESULT_COLUMNS, rows)


def write_prompts(path: Path, rows: Iterable[PromptRow]) -> None:
    _write(path, PROMPT_COLUMNS, rows)


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


def read_prompt_rows(path: Path) -> list[PromptRow]:
    def build(line: Mapping[str, str]) -> PromptRow:
        more = (line.get("cluster", ""), line.get("strength_kind", ""))
        return PromptRow(_cell(line), line["prompt_id"], line["metric"], _number(line["value"]), *more)

    return _read(path, PROMPT_COLUMNS, build, OLD_PROMPT_COLUMNS)


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
    write_csv(path, columns, (_cells_of(row, columns) for row in sorted(rows, key=lambda row: row.order)))


def _cells_of(row: Any, columns: Sequence[str]) -> list[Any]:
    cell = getattr(row, "cell", row)
    return [getattr(cell if name in _CELL else row, name) for name in columns]


def _read(
    path: Path, columns: Sequence[str], build: Callable[[Mapping[str, str]], Row], older: Sequence[str] | None = None
) -> list[Row]:
    """`older` are the columns of tables of earlier versions."""
    lines = csv_lines(path)
    _, names = next(lines, (0, []))
    if older is not None and tuple(names) == tuple(older):
        columns = older
    if tuple(names) != tuple(columns):
        raise TableError(f"{path}: the first line is {','.join(names)!r}, expected {','.join(columns)!r}")
    rows = []
    for number, cells in lines:
        try:
            rows.append(build(dict(zip(columns, cells, strict=True))))
        except ValueError as error:
            raise TableError(f"{path}:{number}: {error}") from None
    return rows


def _cell(line: Mapping[str, str]) -> CellKey:
    return CellKey(line["task"], line["arm"], line["strength"], int(line["seed"]))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise TableError(f"finished is {text!r}, expected 'true' or 'false'")
    return text == "true"
