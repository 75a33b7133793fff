"""The sensitivity of a contrast to the other KL: what is left of it at equal values of the KL that was not held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..config import Contrast
from .contrast_tables import KLS, ContrastData, Numbers, Point, contrast_table, seeds_of
from .two_way import TwoWayMean, two_way_mean


def adjusted_contrast(data: ContrastData, contrast: Contrast, task: str, target: float | None) -> TwoWayMean | None:
    """The contrast minus what its arms' difference in the other KL explains; None where that cannot be known.

    In every seed one slope of the metric against the other KL is fitted to all held arms of the contrast at all of its
    targets, each arm with a level of its own. The slope is linear in the metric, so the adjusted contrast is a weighted
    sum of cells too, and has the same interval. KLs count as known, and arms must be at two targets at least.
    """
    other = KLS[1 - KLS.index(contrast.held_kl)]
    weights = contrast.weight_of
    held = [arm for arm in weights if arm in data.held]
    if target is None or len(contrast.at_targets) < 2 or len(held) < len(weights):
        return None
    points: list[Point] = [(arm, at) for arm in held for at in contrast.at_targets]
    if any(not data.cells(task, *point) for point in points):
        return None
    seeds = seeds_of(data, task, points)
    measured = [[data.mean_of(data.cells(task, *point)[seed], other) for seed in seeds] for point in points]
    kls = np.array(measured, dtype=np.float64)  # None becomes NaN
    if not seeds or not np.isfinite(kls).all():
        return None
    own = adjusting_weights(kls, points, weights, target)
    if own is None:
        return None
    table = contrast_table(data, task, contrast, dict(zip(points, own, strict=True)))
    return None if isinstance(table, str) else two_way_mean(table[0], data.themes(task))


def adjusting_weights(
    kls: Numbers, points: Sequence[Point], weights: Mapping[str, float], target: float
) -> Numbers | None:
    """Weights [points, seeds] of the adjusted contrast, from the other KL [points, seeds]; None where none differs."""
    by_arm = np.array([[arm == other for other, _ in points] for arm, _ in points], dtype=float)
    centered = kls - by_arm @ kls / by_arm.sum(axis=1, keepdims=True)
    spread = (centered**2).sum(axis=0)
    if (spread <= 0).any():
        return None
    slope = centered / spread
    at_target = np.array([weights[arm] if at == target else 0.0 for arm, at in points])[:, None]
    return at_target - slope * (at_target * kls).sum(axis=0)
