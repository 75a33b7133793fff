"""Frontiers: an arm's points over its strengths, and the gap between two arms where their ranges overlap.

A frontier is a set of points (x, y), one a strength, and the reference as the limit of infinite strength; straight
lines join neighbours in x. The gap of two frontiers is the mean of y₁ − y₂ over 41 evenly spaced x in the range of x
that both reach. The rule is the same for every arm, and does not look at the order of the strengths:

- where x is a KL, lines are straight in √KL. Close to the reference every mean over responses changes in proportion to
  √KL (it is linear in a small change of the policy, and the KL quadratic), so a line straight in the KL itself would
  lie too low between the reference and an arm's first point, and favour the arm whose first point is nearer;
- points with equal x count as one, with the mean of their y;
- the range begins at the reference's x. A policy whose reward lies below the reference's is a point outside the range,
  where nobody would want to go; it has no influence. An arm that never gets above the reference has no common range;
- where x is not monotonic in strength (a reward that falls again when the policy is let go too far), the line visits
  the good and the bad branch in turn. It is not cut down to its best points: choosing the best of noisy points favours
  the noisier arm and the arm with more points.

Points are arrays [1 + R], as `cell_statistics` makes them: reference, range and gap are drawn anew in each resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records.study_tables import CellKey
from .cell_statistics import Draws, TaskResamples, same_but_for_the_seed

GRID = 41
KLS = ("forward_kl", "reverse_kl")


@dataclass(frozen=True)
class Frontier:
    """Points x, y [points, draws], NaN where one is missing. Ranges begin at `start` [draws], or at the least x."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    start: Draws | None = None


@dataclass(frozen=True)
class Gap:
    """Mean of first − second over the range [low, high] of x, all [draws]; NaN where no range has positive length."""

    mean: Draws
    low: Draws
    high: Draws


def arm_frontier(
    draws: TaskResamples, arm: str, x: str, y: str, seeds: Sequence[int], *, reference: bool = True
) -> Frontier | None:
    """The arm's points (statistics `x` and `y`, means over `seeds`); the reference is one of them, and the start.

    A KL enters as its root, √nats.
    With `reference=False` only what was trained. None where no strength has both statistics, or where the reference
    is wanted and has not.
    """
    of_strengths = [
        _point(draws, group, x, y, seeds) for group in same_but_for_the_seed(draws.table.of(draws.task, arm))
    ]
    points = [point for point in of_strengths if point is not None]
    if not points:
        return None
    start = None
    if reference:
        limit = _point(draws, draws.table.of(draws.task, "reference"), x, y, seeds)
        if limit is None:
            return None
        start, points = limit[0], [limit, *points]
    return Frontier(np.stack([p[0] for p in points]), np.stack([p[1] for p in points]), start)


def _point(
    draws: TaskResamples, cells: Sequence[CellKey], x: str, y: str, seeds: Sequence[int]
) -> tuple[Draws, Draws] | None:
    across, up = draws.over_seeds(cells, x, seeds), draws.over_seeds(cells, y, seeds)
    if across is None or up is None:
        # The reference differs from itself by nothing, measured or not.
        is_reference = bool(cells) and cells[0].arm == "reference" and x in KLS
        if up is None or not is_reference:
            return None
        across = np.zeros_like(up)
    return (np.sqrt(np.maximum(across, 0.0)) if x in KLS else across), up


def gap(first: Frontier, second: Frontier) -> Gap:
    """What `first` has over `second` on the range of x that both reach."""
    (x1, y1), (x2, y2) = (_sorted(frontier) for frontier in (first, second))
    low = np.maximum(_start(first, x1), _start(second, x2))
    high = np.minimum(_largest(x1), _largest(x2))
    common = high > low  # False where either is NaN
    shares = np.linspace(0.0, 1.0, GRID)[:, None]
    with np.errstate(invalid="ignore"):
        grid = np.where(common, low + shares * (high - low), np.nan)
        difference = (_interpolate(x1, y1, grid) - _interpolate(x2, y2, grid)).mean(axis=0)
    return Gap(np.where(common, difference, np.nan), np.where(common, low, np.nan), np.where(common, high, np.nan))


def _sorted(frontier: Frontier) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points by x in every draw, missing ones last with x = +inf; points of equal x share the mean of their y."""
    missing = ~(np.isfinite(frontier.x) & np.isfinite(frontier.y))
    x, y = np.where(missing, np.inf, frontier.x), np.where(missing, 0.0, frontier.y)
    order = np.argsort(x, axis=0, kind="stable")
    x, y = np.take_along_axis(x, order, axis=0), np.take_along_axis(y, order, axis=0)
    same = x[:, None] == x[None, :]  # [points, points, draws]
    return x, (same * y[None, :]).sum(axis=1) / same.sum(axis=1)


def _start(frontier: Frontier, x: NDArray[np.float64]) -> Draws:
    return x[0] if frontier.start is None else frontier.start


def _largest(x: NDArray[np.float64]) -> Draws:
    return np.where(np.isfinite(x), x, -np.inf).max(axis=0)


def _interpolate(x: NDArray[np.float64], y: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Piecewise linear through x, y [points, draws] (sorted by `_sorted`) at `grid` [G, draws], within x's range."""
    left = np.maximum((x[:, None] <= grid[None]).sum(axis=0) - 1, 0)
    right = np.minimum(left + 1, len(x) - 1)
    x_left, x_right = np.take_along_axis(x, left, axis=0), np.take_along_axis(x, right, axis=0)
    y_left, y_right = np.take_along_axis(y, left, axis=0), np.take_along_axis(y, right, axis=0)
    inside = np.isfinite(x_right) & (x_right > x_left)  # False at and beyond the last point
    share = np.divide(grid - x_left, x_right - x_left, out=np.zeros_like(grid), where=inside)
    return y_left + share * (y_right - y_left)
