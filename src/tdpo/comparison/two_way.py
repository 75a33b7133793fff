"""The mean of a table of seeds × prompts with its interval: seeds and themes cross, prompts of one theme go together.

Every seed answers the same prompts, so a contrast of arms is a table d[seed, prompt], and neither rows nor columns are
independent. The model is d = μ + seed + theme + rest, all three random: a new study would have other seeds and other
themes. With S seeds, G themes and the table of theme means t[S, G], the mean of the table has the variance

    V = σ²_seed / S + σ²_theme / G + σ²_rest / (S·G),

and its parts are estimated from the mean squares of the two-way table (Searle, Casella & McCulloch 1992, ch. 4):
A = variance of the S seed means / S, B = variance of the G theme means / G, E = mean square of the rest / (S·G), whose
expectations are σ²_seed/S + E, σ²_theme/G + E and E. A component that comes out below zero is zero, and its mean square
joins the rest, as in restricted maximum likelihood. The degrees of freedom of Student's t are Satterthwaite's (1946):
V² over the sum of each part's square by its own degrees of freedom. So a few seeds that differ much give few degrees of
freedom, and seeds that do not differ give many. Cameron, Gelbach & Miller's two-way variance (2011) is A + B − E.

`docs/study/coverage.py` simulates how often these intervals hold the truth at the designs that are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bootstrap import LEAST_UNITS

Numbers = NDArray[np.float64]
Count = Numbers | float
LEAST_SEEDS = 2
ROUNDS, PRECISION = 500, 1e-12  # of the fit to a table with gaps


@dataclass(frozen=True)
class Components:
    """Variances of one entry of the table of theme means: between seeds, between themes, and of the rest."""

    seed: float
    theme: float
    rest: float

    def of_mean(self, seeds: int, themes: int) -> float:
        """The variance of the mean of a table of this many seeds and themes."""
        return self.seed / seeds + self.theme / themes + self.rest / (seeds * themes)


@dataclass(frozen=True)
class TwoWayMean:
    """The mean of a table, its standard error and degrees of freedom (None: too few seeds or themes to know them).

    `share` is the share of the table's entries, seeds × prompts, that have a value and count; `themes` and `prompts`
    are how many count.
    """

    value: float
    error: float | None
    freedom: float | None
    seeds: int
    themes: int
    prompts: int
    share: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """(low, high) with this probability of holding the truth; None where the error is not known."""
        if self.error is None or self.freedom is None:
            return None
        half = student_quantile(0.5 + confidence / 2, self.freedom) * self.error
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float | None:
        """Two-sided, of no difference from zero."""
        if self.error is None or self.freedom is None:
            return None
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))


def student_quantile(probability: float, freedom: float) -> float:
    """Student's quantile for any, also a broken, number of degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def two_way_mean(table: Numbers, themes: Sequence[str]) -> TwoWayMean | None:
    """The mean over themes of `table` [S, P], whose columns are prompts of `themes` [P]; NaN where there is no value.

    A prompt counts if at least half of the seeds have a value. Missing entries of the others are filled by the additive
    fit (seed + prompt), so that a seed is not better for lacking a hard prompt, and cost their degrees of freedom. The
    mean is over themes, each the mean of its prompts. None where no prompt counts.
    """
    table, themes = np.asarray(table, dtype=np.float64), list(themes)
    entries = table.size
    is_known = np.isfinite(table)
    table, is_known = table[is_known.any(axis=1)], is_known[is_known.any(axis=1)]
    counts = is_known.sum(axis=0) * 2 >= max(1, len(table))
    table, is_known = table[:, counts], is_known[:, counts]
    if not table.size or not is_known.any(axis=1).all():
        return None
    kept = [theme for theme, count in zip(themes, counts, strict=True) if count]
    of_themes = _theme_means(filled(table), kept)
    seeds, groups = of_themes.shape
    fill, share = float(is_known.mean()), float(is_known.sum()) / entries
    value = float(of_themes.mean())
    if seeds < LEAST_SEEDS or groups < LEAST_UNITS:
        return TwoWayMean(value, None, None, seeds, groups, table.shape[1], share)
    variance, freedom = variance_of_mean(*mean_squares(of_themes, fill), seeds, groups, fill)
    return TwoWayMean(value, math.sqrt(variance), float(freedom), seeds, groups, table.shape[1], share)


def _theme_means(table: Numbers, themes: Sequence[str]) -> Numbers:
    """[S, G], themes in their first order."""
    names = list(dict.fromkeys(themes))
    return np.stack([table[:, [t == name for t in themes]].mean(axis=1) for name in names], axis=1)


def filled(table: Numbers) -> Numbers:
    """The table with its gaps filled by the least-squares fit of seed + prompt to what is there."""
    gaps = ~np.isfinite(table)
    if not gaps.any():
        return table
    whole = np.where(gaps, np.nanmean(table), table)
    for _ in range(ROUNDS):
        fit = whole.mean(axis=1, keepdims=True) + whole.mean(axis=0, keepdims=True) - whole.mean()
        moved = float(np.abs(whole - fit)[gaps].max())
        whole = np.where(gaps, fit, table)
        if moved <= PRECISION * (1 + float(np.abs(whole).max())):
            break
    return whole


def mean_squares(table: Numbers, fill: float = 1.0) -> tuple[Count, Count, Count]:
    """(variance of the seed means, variance of the theme means, mean square of the rest) of tables [..., S, G].

    `fill` is the share of entries that were measured: the others have no rest, and cost degrees of freedom.
    """
    seeds, themes = table.shape[-2:]
    of_seeds, of_themes = table.mean(axis=-1), table.mean(axis=-2)
    rest = table - of_seeds[..., :, None] - of_themes[..., None, :] + table.mean(axis=(-2, -1))[..., None, None]
    freedom = _rest_freedom(seeds, themes, fill)
    return of_seeds.var(axis=-1, ddof=1), of_themes.var(axis=-1, ddof=1), (rest**2).sum(axis=(-2, -1)) / freedom


def _rest_freedom(seeds: int, themes: int, fill: float) -> float:
    return max(1.0, (seeds - 1) * (themes - 1) - (1 - fill) * seeds * themes)


def variance_of_mean(
    of_seeds: Count, of_themes: Count, rest: Count, seeds: int, themes: int, fill: float = 1.0
) -> tuple[Numbers, Numbers]:
    """(variance of the table's mean, Satterthwaite's degrees of freedom) from `mean_squares`; arrays of any shape."""
    freedoms = (seeds - 1, themes - 1, _rest_freedom(seeds, themes, fill))
    a, b, e = np.asarray(of_seeds) / seeds, np.asarray(of_themes) / themes, np.asarray(rest) / (seeds * themes * fill)
    seeds_differ, themes_differ = a > e, b > e
    # A mean square that shows no component is another estimate of the rest.
    pooled_freedom = freedoms[2] + np.where(seeds_differ, 0, freedoms[0]) + np.where(themes_differ, 0, freedoms[1])
    pooled = (
        e * freedoms[2] + np.where(seeds_differ, 0, a) * freedoms[0] + np.where(themes_differ, 0, b) * freedoms[1]
    ) / pooled_freedom
    variance = pooled + seeds_differ * (a - pooled) + themes_differ * (b - pooled)
    parts = (
        (seeds_differ * a) ** 2 / freedoms[0]
        + (themes_differ * b) ** 2 / freedoms[1]
        + ((1.0 - seeds_differ - themes_differ) * pooled) ** 2 / pooled_freedom
    )
    freedom = np.divide(variance**2, parts, out=np.full(np.shape(variance), float(freedoms[0])), where=parts > 0)
    return variance, np.maximum(freedom, 1.0)


def components_of(table: Numbers) -> Components:
    """The three variances of a table [S, G] without gaps, none below zero."""
    seeds, themes = table.shape
    of_seeds, of_themes, rest = (float(part) for part in mean_squares(table))
    return Components(max(of_seeds - rest / themes, 0.0), max(of_themes - rest / seeds, 0.0), rest)


def expected_half_width(components: Components, seeds: int, themes: int, confidence: float = 0.95) -> float:
    """Half the length of the interval that a table of this many seeds and themes is expected to give."""
    variance, freedom = variance_of_mean(
        components.seed + components.rest / themes,
        components.theme + components.rest / seeds,
        components.rest,
        seeds,
        themes,
    )
    return student_quantile(0.5 + confidence / 2, float(freedom)) * math.sqrt(float(variance))
