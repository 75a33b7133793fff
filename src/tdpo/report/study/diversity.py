"""Diversity: methods × metrics, the raw number beside the quality-gated one."""

from __future__ import annotations

from dataclasses import dataclass

from ...methods import REFERENCE
from ...records.metric_names import DIVERSITY, Metric, named
from ..numbers import show, show_interval
from .strengths import Choice
from .study_reading import Estimate, StudyRecord, TaskRecord

CONTEXT = ("reverse_kl", "reward_mean")
Group = tuple[Metric, tuple[str, ...], tuple[str, ...]]  # a metric, its keys, and what tells these apart


@dataclass(frozen=True)
class Column:
    """`head` names what several columns share (raw and gated of one metric); `side` tells them apart."""

    metric: Metric
    side: str
    bars: bool


@dataclass(frozen=True)
class Cell:
    """`bar`: how diverse, in percent of the column's range; None where no bar is drawn."""

    text: str
    limits: str
    bar: float | None


@dataclass(frozen=True)
class Line:
    arm: str
    label: str
    strength: str
    shown: bool
    cells: list[Cell]


@dataclass(frozen=True)
class DiversityTable:
    task: TaskRecord
    caption: str
    heads: list[tuple[str, str, int]]  # (title, note, columns)
    columns: list[Column]
    lines: list[Line]


def diversity_tables(study: StudyRecord, task: TaskRecord, choice: Choice) -> list[DiversityTable]:
    """The tables that the task has numbers for: within prompts, raw and gated side by side; then across prompts."""
    within: list[Group] = [(m, (m.key, f"gated_{m.key}"), ("raw", "good only")) for m in DIVERSITY]
    within.append((named("gated_share"), ("gated_share",), ("",)))
    across: list[Group] = [(m, (f"across_{m.key}",), ("",)) for m in DIVERSITY]
    tables = []
    for caption, groups in (("Among the responses to one prompt", within), ("Across prompts", across)):
        table = _table(study, task, choice, caption, groups)
        if table:
            tables.append(table)
    return tables


def _table(
    study: StudyRecord,
    task: TaskRecord,
    choice: Choice,
    caption: str,
    groups: list[Group],
) -> DiversityTable | None:
    heads: list[tuple[str, str, int]] = []
    columns: list[Column] = []
    for metric, keys, sides in groups:
        own = [
            Column(Metric(key, metric.title, metric.unit, metric.lower), side, key != "gated_share")
            for key, side in zip(keys, sides, strict=True)
            if study.has(task.name, key)
        ]
        if own:
            heads.append((metric.title, "↓ lower is more diverse" if metric.lower else "", len(own)))
            columns += own
    if not any(column.bars for column in columns):
        return None
    context = [Column(named(key), "", False) for key in CONTEXT if study.has(task.name, key)]
    columns = context + columns
    heads = [(c.metric.title, "", 1) for c in context] + heads
    return DiversityTable(task, caption, heads, columns, _rows(study, task, choice, columns))


def _rows(study: StudyRecord, task: TaskRecord, choice: Choice, columns: list[Column]) -> list[Line]:
    cells = [
        (arm, s, [study.estimate(task.name, arm.name, s, c.metric.key) for c in columns]) for arm, s in study.cells
    ]
    cells = [row for row in cells if any(row[2])]
    ranges = []
    for position in range(len(columns)):
        values = [row[2][position].value for row in cells if row[2][position]]  # type: ignore[union-attr]
        ranges.append((min(values), max(values)) if values else (0.0, 0.0))
    return [
        Line(
            arm.name, arm.label, s, arm.name == REFERENCE or choice.first.get(arm.name) == s,
            [_cell(e, c, r) for e, c, r in zip(estimates, columns, ranges, strict=True)],
        )
        for arm, s, estimates in cells
    ]  # fmt: skip


def _cell(estimate: Estimate | None, column: Column, limits: tuple[float, float]) -> Cell:
    if estimate is None:
        return Cell("–", "", None)
    low, high = limits
    share = 1.0 if low == high else (estimate.value - low) / (high - low)
    bar = round(100 * (1 - share if column.metric.lower else share), 1) if column.bars else None
    return Cell(show(estimate.value), show_interval(estimate.limits), bar)
