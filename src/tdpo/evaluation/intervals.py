"""Intervals of an evaluation's numbers. What is drawn is the prompt (or the pair): samples of one depend on it."""

from __future__ import annotations

from ..bootstrap import CONFIDENCE, Numbers, Statistic, mean, statistic_interval, std

__all__ = ["CONFIDENCE", "METHOD", "RESAMPLES", "Statistic", "interval", "mean", "paired_difference", "std"]

RESAMPLES = 10_000
METHOD = f"percentile bootstrap over prompts, {RESAMPLES} resamples"


def interval(values: Numbers, statistic: Statistic = mean, seed: int = 0) -> list[float]:
    """[low, high] at 95 % of a statistic of `values` `[units, samples]` (or `[units]`)."""
    return list(statistic_interval(values, statistic, resamples=RESAMPLES, seed=seed))


def paired_difference(trained: Numbers, base: Numbers, seed: int = 0) -> dict[str, object]:
    """Mean of trained − base, paired by prompt: both are `[prompts, samples]`."""
    gaps = trained.mean(axis=1) - base.mean(axis=1)
    return {
        "estimate": float(gaps.mean()),
        "interval": interval(gaps, seed=seed),
        "confidence": CONFIDENCE,
        "method": f"paired by prompt, {METHOD}",
    }
