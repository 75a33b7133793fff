"""Bootstrap intervals. What is drawn is the prompt (or the pair), since samples of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
METHOD = f"percentile bootstrap over prompts, {RESAMPLES} resamples"

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [..., n] → [...]


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.mean(axis=-1)


def std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.std(axis=-1)


def interval(values: NDArray[np.float64], statistic: Statistic = mean, seed: int = 0) -> list[float]:
    """[low, high] of a statistic of `values` `[units, samples]` (or `[units]`), resampling units with replacement.

    Percentile bootstrap (Efron & Tibshirani 1993, ch. 13) at 95 %. One unit gives an interval of no width,
    which says no more than that it was one.
    """
    table = values.reshape(len(values), -1)
    generator = np.random.default_rng(seed)
    estimates = []
    # In blocks, so that memory stays small for large evaluations.
    block = max(1, 2_000_000 // table.size)
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        drawn = generator.integers(0, len(table), size=(count, len(table)))
        estimates.append(statistic(table[drawn].reshape(count, -1)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(estimates), [tail, 1 - tail])
    return [float(low), float(high)]


def paired_difference(trained: NDArray[np.float64], base: NDArray[np.float64], seed: int = 0) -> dict[str, object]:
    """Mean of trained − base, paired by prompt: both are `[prompts, samples]`."""
    gaps = trained.mean(axis=1) - base.mean(axis=1)
    return {
        "estimate": float(gaps.mean()),
        "interval": interval(gaps, seed=seed),
        "confidence": CONFIDENCE,
        "method": f"paired by prompt, {METHOD}",
    }
