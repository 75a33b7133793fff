"""Which strength stands for a method where a figure or table shows one of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...methods import REFERENCE
from .study_reading import StudyRecord

RULES = {
    "matched": "reverse KL nearest to a common value",
    "tight": "tightest tie to the reference",
    "loose": "loosest tie to the reference",
    "best": "highest mean reward",
}


@dataclass(frozen=True)
class Choice:
    """For one task: the common reverse KL (None where it was not measured), and each rule's strength of each arm."""

    target: float | None
    rules: dict[str, dict[str, str]]


def choices(study: StudyRecord) -> dict[str, Choice]:
    return {task.name: _choice(study, task.name) for task in study.tasks}


def _choice(study: StudyRecord, task: str) -> Choice:
    kls = _reverse_kls(study, task)
    target = _common(kls)
    rules: dict[str, dict[str, str]] = {rule: {} for rule in RULES}
    for arm in study.arms:
        tied = [s for s in arm.strengths if any(key[:3] == (task, arm.name, s) for key in study.results)]
        if arm.name == REFERENCE or not tied:
            continue
        own_kls = kls.get(arm.name, {})
        rewards = {s: e.value for s in tied if (e := study.estimate(task, arm.name, s, "reward_mean"))}
        middle = tied[len(tied) // 2]
        near = min(own_kls, key=lambda s: abs(math.log(own_kls[s] / target))) if own_kls and target else middle
        best = max(rewards, key=lambda s: rewards[s]) if rewards else middle
        for rule, strength in {"matched": near, "tight": tied[0], "loose": tied[-1], "best": best}.items():
            rules[rule][arm.name] = strength
    return Choice(target, rules)


def _reverse_kls(study: StudyRecord, task: str) -> dict[str, dict[str, float]]:
    """Reverse KLs above zero, by arm and strength."""
    kls: dict[str, dict[str, float]] = {}
    for arm in study.arms:
        for strength in arm.strengths:
            estimate = study.estimate(task, arm.name, strength, "reverse_kl")
            if estimate and estimate.value > 0:
                kls.setdefault(arm.name, {})[strength] = estimate.value
    return kls


def _common(kls: dict[str, dict[str, float]]) -> float | None:
    """The middle, in ratios, of the reverse KLs that every arm reaches: between the largest of the arms' smallest and
    the smallest of their largest. Where no value is reached by all it is the middle of that gap; None without any KL.
    """
    if not kls:
        return None
    low = max(min(of_arm.values()) for of_arm in kls.values())
    high = min(max(of_arm.values()) for of_arm in kls.values())
    return math.sqrt(low * high)
