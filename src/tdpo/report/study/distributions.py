"""How the rewards of single responses are spread, one row for each method and strength."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, median, pvariance

from ...methods import REFERENCE
from ..numbers import MISSING, show, show_interval
from .strengths import Choice
from .study_reading import Estimate, StudyRecord, TaskRecord

BINS = 24
WIDTH, HEIGHT = 240, 40  # of a row's drawing, in its own units


@dataclass(frozen=True)
class Spread:
    """One row: `path` is the outline of the shares in equal bins, `mean_at` the mean's place in percent of the axis."""

    arm: str
    label: str
    strength: str
    shown: bool
    path: str
    mean_at: float
    mean: str
    mean_limits: str
    variance: str
    variance_limits: str
    median: str
    count: int


@dataclass(frozen=True)
class Distribution:
    task: TaskRecord
    rows: list[Spread]
    reference: str
    low: str
    high: str
    alt: str


def distributions(study: StudyRecord, chosen: dict[str, Choice]) -> list[Distribution]:
    """One distribution for each task whose responses have different rewards."""
    rewards: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for response in study.responses:
        if response.reward is not None:
            rewards[response.task, response.arm, response.strength].append(response.reward)
    of_tasks = (_distribution(study, task, rewards, chosen[task.name].first) for task in study.tasks)
    return [distribution for distribution in of_tasks if distribution]


def _distribution(
    study: StudyRecord, task: TaskRecord, rewards: dict[tuple[str, str, str], list[float]], chosen: dict[str, str]
) -> Distribution | None:
    cells = [(arm, s, own) for arm, s in study.cells if (own := rewards.get((task.name, arm.name, s)))]
    values = [value for _, _, own in cells for value in own]
    if not values or min(values) == max(values):
        return None
    low, high = min(values), max(values)
    shares = [_shares(own, low, high) for _, _, own in cells]
    top = max(max(share) for share in shares)
    rows = []
    for (arm, strength, own), share in zip(cells, shares, strict=True):
        mean = study.estimate(task.name, arm.name, strength, "reward_mean") or Estimate(fmean(own))
        variance = study.estimate(task.name, arm.name, strength, "reward_variance") or Estimate(pvariance(own))
        rows.append(
            Spread(
                arm.name, arm.label, strength, arm.name == REFERENCE or chosen.get(arm.name) == strength,
                _outline(share, top), round(100 * min(max((mean.value - low) / (high - low), 0), 1), 2),
                show(mean.value), show_interval(mean.limits), show(variance.value), show_interval(variance.limits),
                show(median(own)), len(own),
            )
        )  # fmt: skip
    reference = next((row.path for row in rows if row.arm == REFERENCE), "")
    in_words = " ".join(f"{r.label}: mean {r.mean}, variance {r.variance}." for r in rows if r.shown)
    alt = f"Distribution of {task.reward} over single responses of {task.name}. {in_words}"
    return Distribution(task, rows, reference, show(low), show(high), alt)


def _shares(values: list[float], low: float, high: float) -> list[float]:
    counts = [0] * BINS
    for value in values:
        counts[min(int((value - low) / (high - low) * BINS), BINS - 1)] += 1
    return [count / len(values) for count in counts]


def _outline(shares: list[float], top: float) -> str:
    """A closed SVG path over the bins. The square root keeps a small share visible beside a spike."""
    step = WIDTH / BINS
    points = [f"M0 {HEIGHT}"]
    for position, share in enumerate(shares):
        y = round(HEIGHT - (HEIGHT - 2) * (share / top) ** 0.5, 1)
        points.append(f"L{round(position * step, 1):g} {y:g}H{round((position + 1) * step, 1):g}")
    return "".join([*points, f"L{WIDTH} {HEIGHT}Z"])


def spread_numbers(distribution: Distribution) -> list[list[str]]:
    """The figure as a table: every strength, also those that the page does not show at first."""
    return [
        [r.label, r.strength or MISSING, f"{r.mean} {r.mean_limits}".strip(),
         f"{r.variance} {r.variance_limits}".strip(), r.median, show(r.count)]
        for r in distribution.rows
    ]  # fmt: skip
