"""How the questions of a study are answered: contrasts of arms at measured points, by rules of `docs/the_study.md`.

Each question gives one comparison for each task and target. Its number is the contrast's mean over seeds and themes,
with the interval of `two_way`. The p-values of all primary comparisons are adjusted together. Nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..bootstrap import CONFIDENCE
from ..config import Contrast
from .cell_statistics import VARIANCE
from .contrast_meeting import Meeting, meeting
from .contrast_sensitivity import adjusted_contrast
from .contrast_tables import ContrastData, contrast_table, seeds_of
from .two_way import TwoWayMean, two_way_mean

LEVEL = 1 - CONFIDENCE
TOST = 1 - 2 * LEVEL  # the interval of two one-sided tests at the same level
DIFFERENCE, NO_DIFFERENCE, UNDECIDED = "difference", "no relevant difference", "undecided"


@dataclass(frozen=True)
class Answer:
    """The answer to a question on a task at a target. `reason` says why there is no number."""

    contrast: Contrast
    task: str
    target: float | None
    mean: TwoWayMean | None = None
    reason: str = ""
    meeting: Meeting | None = None
    adjusted: TwoWayMean | None = None
    p_holm: float | None = None

    @property
    def p_value(self) -> float | None:
        return None if self.mean is None else self.mean.p_value

    @property
    def verdict(self) -> str:
        """No relevant difference if the 90 % interval lies within ± the smallest effect; a difference if the p-value
        (of a primary question the adjusted one) is at most 5 %; else undecided."""
        if self.mean is None or (p := self.p_value) is None:
            return UNDECIDED
        narrow, least = self.mean.interval(TOST), self.contrast.smallest_effect
        if least is not None and narrow is not None and -least <= narrow[0] and narrow[1] <= least:
            return NO_DIFFERENCE
        decides = self.p_holm if self.contrast.primary else p
        return DIFFERENCE if decides is not None and decides <= LEVEL else UNDECIDED


def answer_all(data: ContrastData, contrasts: Sequence[Contrast]) -> list[Answer]:
    """The answer to each question on each task at each target, in this order, with adjusted p-values."""
    return adjusted_for_family(
        [
            answer(data, contrast, task, target)
            for contrast in contrasts
            for task in tasks_of(data, contrast)
            for target in contrast.at_targets or (None,)
        ]
    )


def tasks_of(data: ContrastData, contrast: Contrast) -> list[str]:
    """The tasks on which the question is asked: those it names, or all that measure its metric."""
    needed = "reward_square" if contrast.metric == VARIANCE else contrast.metric
    tasks = data.table.tasks()
    if contrast.tasks is not None:
        return [task for task in tasks if task in contrast.tasks]
    return [task for task in tasks if data.table.measured(task, needed)]


def answer(data: ContrastData, contrast: Contrast, task: str, target: float | None) -> Answer:
    """The contrast on one task at one target, p-values not yet adjusted."""
    result = Answer(contrast, task, target)
    points = {(arm, target): weight for arm, weight in contrast.weight_of.items()}
    lacking = [arm for arm, _ in points if not data.cells(task, arm, target)]
    if lacking:
        at = "" if target is None else f" at {target:g} nats"
        return replace(result, reason=f"no run of {', '.join(lacking)}{at}")
    seeds = seeds_of(data, task, points)
    if not seeds:
        return replace(result, reason="no seed that all of its arms have")
    result = replace(result, meeting=meeting(data, contrast, task, target, seeds))
    table = contrast_table(
        data, task, contrast, {point: np.full(len(seeds), weight) for point, weight in points.items()}
    )
    if isinstance(table, str):
        return replace(result, reason=table)
    mean = two_way_mean(table[0], data.themes(task))
    if mean is None:
        return replace(result, reason="no prompt has a value in all of its arms in half of the seeds")
    reason = ""
    if mean.error is None:
        few = "one seed" if mean.seeds < 2 else f"{mean.themes} themes"
        reason = f"no interval, as {few} cannot give one"
    return replace(result, mean=mean, reason=reason, adjusted=adjusted_contrast(data, contrast, task, target))


def adjusted_for_family(answers: Sequence[Answer]) -> list[Answer]:
    """The answers with Holm's (1979) p-values of the primary ones, in their order.

    A primary comparison without a p-value counts as one with p = 1: the family is what was planned.
    """
    primary = [place for place, one in enumerate(answers) if one.contrast.primary]
    p_values = [1.0 if (p := answers[place].p_value) is None else p for place in primary]
    adjusted = dict(zip(primary, holm(p_values), strict=True))
    return [
        replace(one, p_holm=adjusted[place]) if place in adjusted and one.p_value is not None else one
        for place, one in enumerate(answers)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
