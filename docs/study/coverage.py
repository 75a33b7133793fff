"""How often the intervals of contrasts hold the truth, simulated at the designs in use: python docs/study/coverage.py

Prints tables in Markdown; it takes a minute. Tables of seeds × themes are drawn with the variances that a finished
study has (those of `power.py`) and with multiples of them, and judged by `tdpo.comparison.two_way`, with the truth
zero. A variance that the study does not show is taken as a fortieth of the rest. The last table has gaps, as contrasts
among good responses have. Another study than this folder's is read with its folder as the first argument, and its
metrics as further ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tdpo.comparison.expected_widths import pair_components
from tdpo.comparison.prompt_table import read_prompt_table
from tdpo.comparison.two_way import Components, mean_squares, two_way_mean, variance_of_mean

TRIES, BLOCK, TRIES_WITH_GAPS = 20_000, 4_000, 1_000
LEVELS = (0.95, 0.9)
DESIGNS = ((4, 40, 1), (5, 44, 3))
SEED_FACTORS, THEME_FACTORS = (0.0, 0.25, 1.0, 4.0, 16.0), (0.0, 1.0, 4.0, 16.0)
GAPS = (0.1, 0.3)
METRICS = ("embedding_diversity",)


def drawn(random: np.random.Generator, parts: Components, design: tuple[int, int, int], tries: int) -> np.ndarray:
    """Theme means [tries, seeds, themes] without any difference; `parts` are of a single prompt."""
    seeds, themes, prompts = design
    shapes = ((tries, seeds, 1), (tries, 1, themes), (tries, seeds, themes))
    variances = (parts.seed, parts.theme, parts.rest / prompts)
    return sum(random.normal(0, np.sqrt(v), shape) for v, shape in zip(variances, shapes, strict=True))


def coverage(random: np.random.Generator, parts: Components, design: tuple[int, int, int]) -> list[float]:
    """The share of intervals at each level that hold zero."""
    from scipy.special import stdtrit

    hits = np.zeros(len(LEVELS))
    for _ in range(TRIES // BLOCK):
        tables = drawn(random, parts, design, BLOCK)
        variance, freedom = variance_of_mean(*mean_squares(tables), design[0], design[1])
        far = np.abs(tables.mean(axis=(1, 2))) / np.sqrt(variance)
        hits += [(far <= stdtrit(freedom, 0.5 + level / 2)).sum() for level in LEVELS]
    return list(hits / TRIES)


def coverage_with_gaps(
    random: np.random.Generator, parts: Components, design: tuple[int, int, int], gaps: float
) -> float:
    """The same at 95 %, where a share `gaps` of the entries has no value."""
    seeds, themes, prompts = design
    names = [str(theme) for theme in range(themes) for _ in range(prompts)]
    hits = 0
    for _ in range(TRIES_WITH_GAPS):
        of_themes = drawn(random, replace(parts, rest=0.0), design, 1)[0]
        table = np.repeat(of_themes, prompts, axis=1) + random.normal(0, np.sqrt(parts.rest), (seeds, len(names)))
        table[random.random(table.shape) < gaps] = np.nan
        mean = two_way_mean(table, names)
        assert mean is not None
        limits = mean.interval()
        assert limits is not None
        hits += limits[0] <= 0 <= limits[1]
    return hits / TRIES_WITH_GAPS


def variances(folder: Path, metrics: Sequence[str]) -> dict[str, Components]:
    """By "task, metric", the variances of the difference of two arms at one prompt; those that it can be known for."""
    table = read_prompt_table(folder / "prompts.csv")
    found = {}
    for task in table.tasks():
        for metric in metrics:
            if own := pair_components(table, task, metric):
                found[f"{task}, {metric}"] = own[0]
    return found


def main() -> None:
    random = np.random.default_rng(20261130)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    known = variances(folder, sys.argv[2:] or METRICS)
    if not known:
        sys.exit(f"no variances in {folder}: they need two seeds, two arms and six prompts")
    for design in DESIGNS:
        print(f"\n95 % intervals (and 90 % ones), {design[0]} seeds × {design[1]} themes × {design[2]}\n")
        heads = [f"seed × {factor:g}" for factor in SEED_FACTORS]
        print(f"| variances | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
        for name, own in known.items():
            seed, theme = (max(part, own.rest / 40) for part in (own.seed, own.theme))
            for factor in THEME_FACTORS:
                parts = [Components(seed * by, theme * factor, own.rest) for by in SEED_FACTORS]
                cells = [f"{wide:.3f} ({narrow:.3f})" for wide, narrow in (coverage(random, p, design) for p in parts)]
                print(f"| {name}, theme × {factor:g} | {' | '.join(cells)} |", flush=True)
    heads = [f"{gaps:.0%} missing" for gaps in GAPS]
    print(f"\n95 % intervals with gaps\n\n| design | {' | '.join(heads)} |\n|---|---|---|")
    for name, own in known.items():
        for design in DESIGNS:
            row = [coverage_with_gaps(random, own, design, gaps) for gaps in GAPS]
            print(f"| {name}, {' × '.join(map(str, design))} | {' | '.join(f'{share:.3f}' for share in row)} |")


if __name__ == "__main__":
    main()
