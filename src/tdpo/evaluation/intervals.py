"""Intervals of an evaluation's numbers. What is drawn is the prompt: its responses and its pairs depend on each other.

A mean has the interval of the bootstrap over prompts, a share of pairs that of Wilson with an effective sample size.
Neither collapses to a point: where the data cannot say how sure a number is, there is no interval (None).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..bootstrap import CONFIDENCE, LEAST_UNITS, Numbers, Statistic, mean, statistic_interval, std

__all__ = [
    "CONFIDENCE", "LEAST_UNITS", "METHOD", "RESAMPLES", "SHARE_METHOD", "Statistic", "interval", "mean",
    "mean_by_prompt", "numbered", "paired_difference", "share_interval", "std",
]  # fmt: skip

RESAMPLES = 10_000
METHOD = f"expanded percentile bootstrap over prompts, {RESAMPLES} resamples"
SHARE_METHOD = "Wilson with prompts as clusters"


def interval(values: Numbers, statistic: Statistic = mean, seed: int = 0) -> list[float] | None:
    """[low, high] at 95 % of a statistic of `values` `[units, samples]` (or `[units]`).

    None for fewer than six units, and where all values are equal.
    """
    limits = statistic_interval(values, statistic, resamples=RESAMPLES, seed=seed)
    return None if limits is None else list(limits)


def paired_difference(trained: Numbers, base: Numbers, seed: int = 0) -> dict[str, object]:
    """Mean of trained − base, paired by prompt: both are `[prompts, samples]`. Its interval may be None."""
    gaps = trained.mean(axis=1) - base.mean(axis=1)
    return {
        "estimate": float(gaps.mean()),
        "interval": interval(gaps, seed=seed),
        "confidence": CONFIDENCE,
        "method": f"paired by prompt, {METHOD}",
    }


def numbered(prompts: Sequence[Hashable]) -> NDArray[np.int64]:
    """Equal prompts get equal numbers `[pairs]`, counted from 0 in the order of their first pairs."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], dtype=np.int64)


def mean_by_prompt(values: Numbers, prompts: NDArray[np.int64], seed: int = 0) -> list[float] | None:
    """[low, high] at 95 % of the mean of `values` `[pairs]`, whole prompts (`numbered`) drawn with replacement.

    A prompt brings all of its pairs, so the mean of a resample is a ratio of sums. None as in `interval`.
    """
    sums = np.stack([np.bincount(prompts, values), np.bincount(prompts)], axis=1, dtype=np.float64)
    return interval(sums, _ratio, seed)


def _ratio(drawn: Numbers) -> Numbers:
    """Of resamples `[…, 2·units]` with (sum, count) of each drawn unit, the mean."""
    ratio: Numbers = drawn[..., 0::2].sum(axis=-1) / drawn[..., 1::2].sum(axis=-1)
    return ratio


def share_interval(
    values: Numbers, prompts: NDArray[np.int64] | None = None, confidence: float = CONFIDENCE
) -> list[float]:
    """[low, high] of the mean p of `values` `[pairs]` in [0, 1] (right 1, wrong 0, tie ½), by Wilson 1927:

        (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n),   n = `effective_size(values, prompts)`

    z is the normal quantile. Unlike a bootstrap it has a width where all pairs are right: of 6 of 6, [0.61, 1].

    Args:
        values: of at least one pair.
        prompts: the number of each pair's prompt (`numbered`); None where each pair has a prompt of its own.
        confidence: 0.95 for a 95 % interval.
    """
    size = effective_size(values, np.arange(len(values)) if prompts is None else prompts)
    p, z = float(values.mean()), NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    centre = p + z * z / (2 * size)
    half = z * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size))
    low, high = ((centre + side * half) / (1 + z * z / size) for side in (-1, 1))
    return [max(0.0, low), min(1.0, high)]


def effective_size(values: Numbers, prompts: NDArray[np.int64]) -> float:
    """How many independent pairs say as much about the share as these n pairs of G prompts: n / (1 + (k − 1)·ρ).

    k = Σ m² / n is the size m of a prompt's group as a pair sees it, and ρ ∈ [0, 1] how alike the pairs of a prompt
    are. ρ = (deff − 1)/(k − 1), where deff = V·n / (p(1−p)) compares the variance between prompts,
    V = G/(G−1)·Σ (y − m·p)²/n² with y = a prompt's sum, to that of independent pairs (Kish 1965, ch. 5 and 8; for
    Wilson's interval Korn & Graubard 1998). With pairs that are all right, V says nothing. So ρ is estimated with two
    groups of size k added, one all right and one all wrong: it is 1 where nothing speaks against it, and they hardly
    count where there are many prompts. With a prompt for each pair the result is n.
    """
    sums, counts = np.bincount(prompts, values), np.bincount(prompts).astype(float)
    pairs = counts.sum()
    group = float((counts**2).sum() / pairs)
    if group == 1.0:
        return float(pairs)
    alike = _likeness(np.append(sums, [group, 0.0]), np.append(counts, [group, group]))
    return float(pairs / (1 + (group - 1) * alike))


def _likeness(sums: Numbers, counts: Numbers) -> float:
    """ρ of `effective_size`, of groups by their sums and sizes."""
    pairs, groups = counts.sum(), len(counts)
    p, group = sums.sum() / pairs, (counts**2).sum() / pairs
    between = groups / (groups - 1) * ((sums - counts * p) ** 2).sum() / pairs**2
    effect = between * pairs / (p * (1 - p))
    return float(np.clip((effect - 1) / (group - 1), 0.0, 1.0))
