"""How often the intervals of an evaluation hold the truth, simulated: `python -m helpers.interval_coverage` in tests/
prints the tables of docs/intervals.md."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tdpo.bootstrap import mean, statistic_interval
from tdpo.evaluation.intervals import share_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]
MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda random, units: random.normal(size=units), 0.0),
    "uniform": (lambda random, units: random.random(units), 0.5),
    "exponential": (lambda random, units: random.exponential(size=units), 1.0),
}


def share_coverage(prompts: int, each: int, alike: float, tries: int, seed: int = 0) -> float:
    """The share of intervals that hold the true accuracy, which is drawn from [0.5, 0.98] for each try.

    A prompt has its own probability of a right pair, from the beta distribution with which two of its pairs have the
    correlation `alike`.
    """
    random, groups, covered = np.random.default_rng(seed), np.repeat(np.arange(prompts), each), 0
    for truth in random.uniform(0.5, 0.98, tries):
        own = np.full(prompts, truth)
        if alike == 1:
            own = (random.random(prompts) < truth).astype(float)
        elif alike:
            own = random.beta(truth * (1 - alike) / alike, (1 - truth) * (1 - alike) / alike, prompts)
        right = (random.random((prompts, each)) < own[:, None]).ravel().astype(float)
        low, high = share_interval(right, groups)
        assert low < high
        covered += low <= truth <= high
    return covered / tries


def mean_coverage(distribution: str, units: int, tries: int, seed: int = 0) -> float:
    """The share of bootstrap intervals that hold the mean of the distribution."""
    (draw, truth), random = MEANS[distribution], np.random.default_rng(seed)
    limits = [statistic_interval(draw(random, units), mean, resamples=1000, seed=at) for at in range(tries)]
    return float(np.mean([low <= truth <= high for low, high in filter(None, limits)]))


def main() -> None:
    """Print both tables in Markdown."""
    print("| pairs | 0 | 0.3 | 0.7 | 1 |\n|---|---|---|---|---|")
    for prompts, each in ((6, 1), (6, 2), (10, 4), (30, 4), (100, 4)):
        cells = [f"{share_coverage(prompts, each, alike, 4000):.3f}" for alike in (0.0, 0.3, 0.7, 1.0)]
        shown = cells if each > 1 else [cells[0], "", "", ""]
        print(f"| {each} of each of {prompts} prompts | " + " | ".join(shown) + " |")
    print("\n| values | 6 | 10 | 20 | 40 |\n|---|---|---|---|---|")
    for name in MEANS:
        print(f"| {name} | " + " | ".join(f"{mean_coverage(name, n, 2000):.3f}" for n in (6, 10, 20, 40)) + " |")


if __name__ == "__main__":
    main()
