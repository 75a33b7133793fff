"""Statistics of cells with intervals: a paired bootstrap over prompts and, across seeds, over seeds and prompts.

Every quantity is an array [1 + R]: first the estimate itself (each prompt and seed counted once), then R resamples.
A difference, a ratio or a frontier of such arrays is thereby computed for the estimate and for each resample by the
same code.

The percentile bootstrap has two crossed levels here (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
Statistics 1(2)): prompts are drawn with replacement, the same draw for all arms, strengths and seeds of a task; seeds
are drawn with replacement, the same draw for all arms and strengths. The draws of a task follow from its name alone, so
that another task or arm in the study changes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..bootstrap import LEAST_UNITS, resample_interval, unit_counts
from ..records.study_tables import ALL_SEEDS, CellKey, ResultRow
from .prompt_table import PromptTable

RESAMPLES = 2000
SEED = 20240411

Draws = NDArray[np.float64]  # [1 + R]: the estimate, then the resamples; NaN where undefined

# Statistics that are not a mean of the prompts' values of the same name.
VARIANCE = "reward_variance"
PER_TOKEN = {
    "forward_kl_per_token": ("forward_kl", "forward_kl_tokens"),
    "reverse_kl_per_token": ("reverse_kl", "reverse_kl_tokens"),
}
_INGREDIENTS = {"reward_square", *(tokens for _, tokens in PER_TOKEN.values())}


class TaskResamples:
    """The resamples of one task, and the cells' statistics in each of them."""

    def __init__(self, table: PromptTable, task: str, *, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        self.table, self.task = table, task
        self.allows_intervals = len(table.prompts[task]) >= LEAST_UNITS
        self._resamples, self._entropy = resamples, (seed, zlib.crc32(task.encode()))
        prompts = len(table.prompts[task])
        self._prompt_counts = unit_counts(np.random.default_rng((*self._entropy, 0)), prompts, resamples)
        self._cells: dict[tuple[CellKey, str], Draws | None] = {}
        self._seeds: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def cell(self, cell: CellKey, statistic: str) -> Draws | None:
        """A statistic of one cell [1 + R], prompts resampled. None where the cell was not measured for it.

        `reward_variance` is the variance over all responses, mean of squares − mean²; `…_kl_per_token` a ratio of
        means, Σ KL / Σ tokens; everything else the mean over the prompts that have a value.
        """
        if (cell, statistic) not in self._cells:
            self._cells[cell, statistic] = self._statistic(cell, statistic)
        return self._cells[cell, statistic]

    def _statistic(self, cell: CellKey, statistic: str) -> Draws | None:
        metrics = self.table.cells.get(cell, {})
        if statistic == VARIANCE:
            return self._variance(metrics)
        if statistic in PER_TOKEN:
            kl, tokens = (metrics.get(name) for name in PER_TOKEN[statistic])
            return None if kl is None or tokens is None else self._ratio(kl, tokens, np.isfinite(kl + tokens))
        values = metrics.get(statistic)
        return None if values is None else self._ratio(values, np.ones_like(values), ~np.isnan(values))

    def _ratio(self, above: NDArray[np.float64], below: NDArray[np.float64], valid: NDArray[np.bool_]) -> Draws | None:
        if not valid.any():
            return None
        # One vector at a time: equal vectors give equal sums to the last bit; columns of a matrix product need not.
        with np.errstate(invalid="ignore"):  # an infinite KL, drawn no times, makes a resample undefined
            sums = self._prompt_counts @ np.where(valid, above, 0.0)
        return _divide(sums, self._prompt_counts @ np.where(valid, below, 0.0))

    def _variance(self, metrics: dict[str, NDArray[np.float64]]) -> Draws | None:
        reward, square = metrics.get("reward_mean"), metrics.get("reward_square")
        if reward is None or square is None:
            return None
        ones, valid = np.ones_like(reward), np.isfinite(reward + square)
        mean, mean_square = self._ratio(reward, ones, valid), self._ratio(square, ones, valid)
        if mean is None or mean_square is None:
            return None
        variance = mean_square - mean**2
        return np.where(variance <= 1e-12 * mean_square, 0.0, variance)  # a constant leaves rounding only

    def interval(self, draws: Draws) -> tuple[float | None, float | None]:
        """As `interval`; both None where the task has too few prompts to resample."""
        return interval(draws) if self.allows_intervals else (None, None)

    def seed_weights(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """How often each of these seeds counts, `[1 + R, seeds]`, in ascending order. Equal seeds get the same draw."""
        key = tuple(sorted(seeds))
        if key not in self._seeds:
            self._seeds[key] = unit_counts(np.random.default_rng((*self._entropy, 1, *key)), len(key), self._resamples)
        return self._seeds[key]

    def over_seeds(self, cells: Sequence[CellKey], statistic: str, seeds: Sequence[int]) -> Draws | None:
        """Mean over `seeds` of a statistic of cells that differ in their seed, [1 + R], seeds and prompts resampled.

        Seeds without such a cell are left out; a resample that draws none of the others is undefined.
        """
        weights = self.seed_weights(seeds)
        above = below = np.zeros(1 + self._resamples)
        by_seed = {cell.seed: self.cell(cell, statistic) for cell in cells}
        for column, seed in enumerate(sorted(seeds)):
            values = by_seed.get(seed)
            if values is not None:
                weight = np.where(np.isnan(values), 0.0, weights[:, column])
                above, below = above + weight * np.where(weight > 0, values, 0.0), below + weight
        mean = _divide(above, below)
        return None if np.isnan(mean[0]) else mean


def _divide(above: Draws, below: Draws) -> Draws:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def interval(draws: Draws) -> tuple[float | None, float | None]:
    """(low, high) at 95 % of the resamples of `draws` `[1 + R]`; both None where too many of them are undefined."""
    return resample_interval(draws[1:])


def statistics_of(metrics: Iterable[str]) -> list[str]:
    """The statistics that prompts with these metrics allow, sorted."""
    names = set(metrics)
    per_token = {name for name, ingredients in PER_TOKEN.items() if names.issuperset(ingredients)}
    variance = {VARIANCE} if names.issuperset({"reward_mean", "reward_square"}) else set()
    return sorted((names - _INGREDIENTS) | per_token | variance)


def cell_results(table: PromptTable, *, resamples: int = RESAMPLES, seed: int = SEED) -> list[ResultRow]:
    """Every statistic that follows from prompts: per cell (prompts resampled) and over all seeds (both resampled)."""
    rows = []
    for task in table.tasks():
        draws = TaskResamples(table, task, resamples=resamples, seed=seed)
        for cell in table.of(task):
            for name in statistics_of(table.cells[cell]):
                rows.append(_row(cell, cell.seed, name, draws, draws.cell(cell, name)))
        for cells in same_but_for_the_seed(table.of(task)):
            names = statistics_of(metric for cell in cells for metric in table.cells[cell])
            for name in names:
                pooled = draws.over_seeds(cells, name, [cell.seed for cell in cells])
                rows.append(_row(cells[0], ALL_SEEDS, name, draws, pooled))
    return sorted(rows, key=lambda row: row.order)


def _row(cell: CellKey, seed: int | str, name: str, task: TaskResamples, draws: Draws | None) -> ResultRow:
    where = (cell.task, cell.arm, cell.strength, seed, name)
    if draws is None:
        return ResultRow(*where, None)  # type: ignore[arg-type]
    return ResultRow(*where, float(draws[0]), *task.interval(draws))  # type: ignore[arg-type]


def same_but_for_the_seed(cells: Iterable[CellKey]) -> list[list[CellKey]]:
    """Cells grouped by (task, arm, strength), in the order of the study."""
    groups: dict[tuple[str, str, str], list[CellKey]] = {}
    for cell in sorted(cells):
        groups.setdefault((cell.task, cell.arm, cell.strength), []).append(cell)
    return list(groups.values())


def means_over_seeds(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """`all` rows without an interval, for numbers that a cell has once (accuracy, cost): means of what is defined."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row.order):
        values = groups.setdefault((row.task, row.arm, row.strength, row.metric), [])
        if row.seed != ALL_SEEDS and row.value is not None and np.isfinite(row.value):
            values.append(row.value)
    return [
        ResultRow(task, arm, strength, ALL_SEEDS, metric, float(np.mean(values)) if values else None)
        for (task, arm, strength, metric), values in groups.items()
    ]
