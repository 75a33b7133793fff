"""The tables [seed, prompt] of a contrast: which cells an arm has at a target, and a value of each prompt.

A quantity that is no mean over prompts has values of prompts all the same, whose mean it is and whose spread is that of
its estimate: the variance of rewards between prompts is a mean over pairs of prompts, and a prompt's value follows from
its pairs (Hoeffding's decomposition of a U-statistic).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..config import Contrast
from ..methods import REFERENCE
from ..records.study_tables import CellKey
from .cell_statistics import VARIANCE
from .prompt_table import PromptTable

Numbers = NDArray[np.float64]
Point = tuple[str, float | None]  # an arm and its target
KLS = ("forward_kl", "reverse_kl")


@dataclass(frozen=True)
class ContrastData:
    """What contrasts are computed from.

    Attributes:
        table: the values of prompts.
        held: the arms that are held at targets; a target is the strength of their cells.
        responses: the responses to each prompt, by which variances within prompts are unbiased; None where not known.
        clusters: by task, the theme of each prompt; a prompt without an entry is a theme of its own.
    """

    table: PromptTable
    held: frozenset[str]
    responses: int | None = None
    clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def themes(self, task: str) -> list[str]:
        """The theme of each of the task's prompts, in the order of the table."""
        own = self.clusters.get(task, {})
        return [own.get(prompt) or f"prompt {prompt}" for prompt in self.table.prompts[task]]

    def cells(self, task: str, arm: str, target: float | None) -> dict[int, CellKey]:
        """By seed, the cells of `arm` (or arm@strength): those at the target, or the only ones of an arm not held."""
        name, _, strength = arm.partition("@")
        if name in self.held:
            strength = "" if target is None else f"{target:g}"
        of_arm = [cell for cell in self.table.cells if cell.task == task and cell.arm == name]
        if name != REFERENCE and strength:
            of_arm = [cell for cell in of_arm if cell.strength == strength]
        return {cell.seed: cell for cell in of_arm}

    def values(self, cell: CellKey, contrast: Contrast) -> Numbers | None:
        """What the contrast compares, [prompts]; None where the cell was not measured for it."""
        metrics = self.table.cells[cell]
        if contrast.metric != VARIANCE:
            return metrics.get(contrast.metric)
        mean, square = metrics.get("reward_mean"), metrics.get("reward_square")
        if mean is None or square is None or self.responses is None or self.responses < 2:
            return None
        return reward_variance(mean, square, self.responses, self.themes(cell.task), contrast.component)

    def mean_of(self, cell: CellKey, metric: str) -> float | None:
        """The mean over prompts of a metric of a cell."""
        values = self.table.cells[cell].get(metric)
        if values is None or not np.isfinite(values).any():
            return None
        return float(values[np.isfinite(values)].mean())


def reward_variance(
    mean: Numbers, square: Numbers, responses: int, themes: Sequence[str], component: str | None
) -> Numbers:
    """Values of prompts [P] whose mean is an unbiased estimate of a part of the variance of rewards.

    `mean` and `square` are the means over a prompt's `responses` of the reward and of its square.

    - *within*: the expected variance of the rewards of one prompt, n/(n − 1)·(mean of squares − mean²).
    - *between*: the variance of the prompts' expected rewards. For prompts p and q of different themes
      ½·((m_p − m_q)² − (within_p + within_q)/n) is unbiased; m are the means of n responses. A prompt's value is twice
      its mean over all q, minus the mean over all pairs. With one theme there is none (NaN).
    - None: their sum, the variance of the reward of a response to a random prompt.
    """
    within = np.maximum(square - mean**2, 0.0) * responses / (responses - 1)
    if component == "within":
        return within
    kernel = 0.5 * ((mean[:, None] - mean[None, :]) ** 2 - (within[:, None] + within[None, :]) / responses)
    names = np.array(list(themes))
    usable = (names[:, None] != names[None, :]) & np.isfinite(kernel)
    count = usable.sum(axis=1)
    of_prompt = np.divide(
        np.where(usable, kernel, 0.0).sum(axis=1), count, out=np.full(len(mean), np.nan), where=count > 0
    )
    overall = np.nanmean(of_prompt) if (count > 0).any() else np.nan
    between = 2 * of_prompt - overall
    return between if component == "between" else within + between


def contrast_table(
    data: ContrastData, task: str, contrast: Contrast, weights: Mapping[Point, Numbers]
) -> tuple[Numbers, list[int]] | str:
    """(the weighted sum of cells' values [seeds, prompts], the seeds), or why there is none.

    `weights` are by (arm, target) and have an entry for each of the seeds. An entry of the table has a value where all
    cells with a weight have one: so both sides have the same prompts in the same seed.
    """
    cells = {key: data.cells(task, *key) for key in weights}
    seeds = sorted(set.intersection(*(set(of_seeds) for of_seeds in cells.values())))
    total = np.zeros((len(seeds), len(data.table.prompts[task])))
    for key, by_seed in cells.items():
        for row, seed in enumerate(seeds):
            values = data.values(by_seed[seed], contrast)
            if values is None:
                return f"{contrast.metric} was not measured for {by_seed[seed]}"
            total[row] += weights[key][row] * values
    return total, seeds


def seeds_of(data: ContrastData, task: str, points: Iterable[Point]) -> list[int]:
    """The seeds that all of these points have."""
    return sorted(set.intersection(*(set(data.cells(task, *point)) for point in points)))
