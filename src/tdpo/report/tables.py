"""The tables of the report, and those of results and of held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..records.dotted import at, dict_at, text_at
from .numbers import number, show, show_interval, show_signed
from .results import (
    GENERATION_METRICS,
    PAIR_METRICS,
    Column,
    Metric,
    generation_interval,
    metric_rows,
    pair_interval,
    reward_name,
)
from .run import Run


@dataclass(frozen=True)
class Cell:
    """One table cell: a value, and below it in small type what qualifies it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    unit: str
    cells: list[Cell]

    @property
    def shared(self) -> bool:
        """Whether every column says the same."""
        return len(set(self.cells)) == 1


@dataclass(frozen=True)
class Table:
    """`heads` has one entry for each column of cells; `colors` are the columns' run colours (None: no swatch)."""

    caption: str
    heads: list[str]
    rows: list[Row]
    colors: list[int | None]
    corner: str = ""


def results_table(columns: list[Column], runs: list[Run]) -> Table:
    numbers = [column.numbers for column in columns]
    reward = reward_name(runs)
    rows = []
    for metric in metric_rows(GENERATION_METRICS, numbers):
        unit = reward if metric.key == "reward_mean" and reward != "reward" else metric.unit
        cells = [_estimate(metric, entry, generation_interval(entry, metric.key)) for entry in numbers]
        rows.append(Row(metric.title, unit, cells))
        if metric.key == "reward_mean":
            rows.extend(_difference_rows(columns))
    return Table(
        f"Responses to held-out prompts{_each(runs)}",
        [column.label for column in columns],
        rows,
        [column.color for column in columns],
    )


def _each(runs: list[Run]) -> str:
    """ ", 4 to each": how many, if all runs with responses have as many, since curves of PPO rest on one to each."""
    samples = {number(at(run.evaluation, "settings", "samples_per_prompt")) for run in runs} - {None}
    return f", {show(int(samples.pop() or 0))} to each" if len(samples) == 1 else ""


def _estimate(metric: Metric, numbers: dict[str, Any], limits: Any) -> Cell:
    return Cell(metric.show(numbers.get(metric.key)), metric.show_interval(limits))


def _difference_rows(columns: list[Column]) -> list[Row]:
    keys = sorted({key for column in columns for key in dict_at(column.run.evaluation, "difference")})
    titles = {metric.key: metric.title.lower() for metric in GENERATION_METRICS}
    rows = []
    for key in keys:
        cells = []
        for column in columns:
            entry = None if column.is_base else at(column.run.evaluation, "difference", key)
            cells.append(Cell(show_signed(at(entry, "estimate")), show_interval(at(entry, "interval"))))
        unit = "paired by prompt" if "paired" in text_at(_first(columns, key), "method") else ""
        rows.append(Row(f"Change of the {titles.get(key, key.replace('_', ' '))}", unit, cells))
    return rows


def _first(columns: list[Column], key: str) -> Any:
    entries = (at(column.run.evaluation, "difference", key) for column in columns)
    return next((entry for entry in entries if entry), None)


def difference_method(runs: list[Run]) -> str:
    """How the intervals of the differences were made, in the evaluation's own words."""
    methods = {text_at(run.evaluation, "difference", "reward_mean", "method") for run in runs} - {""}
    return "; ".join(sorted(methods))


def pairs_table(runs: list[Run]) -> Table | None:
    """Held-out pairs of every run that has them, or None."""
    with_pairs = [run for run in runs if isinstance(run.evaluation.get("pairs"), dict)]
    if not with_pairs:
        return None
    numbers = [run.evaluation["pairs"] for run in with_pairs]
    rows = [
        Row(metric.title, metric.unit, [_estimate(metric, n, pair_interval(n, metric.key)) for n in numbers])
        for metric in metric_rows(PAIR_METRICS, numbers)
    ]
    return Table("Held-out preference pairs", [r.label for r in with_pairs], rows, [r.index for r in with_pairs])


def plain(value: Any) -> str:
    """A setting as it is, without rounding: yes, 0.0005, sentiment; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and number(value) is not None:
        return f"{value:g}"
    return str(value)
