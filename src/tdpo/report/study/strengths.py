"""Which strength stands for a method where a figure or table shows one of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...methods import REFERENCE
from ...records.metric_names import counted
from .study_reading import ArmRecord, StudyRecord

MATCHED = {"matched": "reverse KL nearest to a common value"}
RULES = {
    "tight": "tightest tie to the reference",
    "loose": "loosest tie to the reference",
    "best": "highest mean reward",
}


@dataclass(frozen=True)
class Choice:
    """For one task: each rule's strength of each arm, and the reverse KL that the rule "matched" looks for (None where
    it was not measured, or where the arms were held at targets)."""

    target: float | None
    rules: dict[str, dict[str, str]]

    @property
    def first(self) -> dict[str, str]:
        """What the page shows at first: the strengths of the first rule."""
        return next(iter(self.rules.values()))


def targets_of(study: StudyRecord) -> list[str]:
    """The targets at which arms of the study were held, from the smallest."""
    return sorted({strength for arm in study.arms if arm.held for strength in arm.strengths}, key=float)


def rules_of(study: StudyRecord) -> dict[str, str]:
    """The rules in words. The first ones make arms comparable: by targets where they were held, else by their KL."""
    held = {_rule(target): f"held at {counted(float(target), 'nat')}" for target in targets_of(study)}
    return (held or MATCHED) | RULES


def strength_words(arm: ArmRecord, strength: str) -> str:
    """A strength with what it is: β 0.1, learning rate 0.0003, held at 2 nats."""
    if arm.held:
        return f"held at {counted(float(strength), 'nat')}"
    if arm.kind == "n":
        return f"n = {strength}"
    return strength if arm.kind.lower() == arm.label.lower() else f"{arm.kind} {strength}".strip()


def choices(study: StudyRecord) -> dict[str, Choice]:
    return {task.name: _choice(study, task.name) for task in study.tasks}


def _choice(study: StudyRecord, task: str) -> Choice:
    kls = _kls(study, task, held_kl(study))
    targets = {_rule(target): float(target) for target in targets_of(study)}
    common = None if targets else _common(kls)
    rules: dict[str, dict[str, str]] = {rule: {} for rule in rules_of(study)}
    for arm in study.arms:
        tied = [s for s in arm.strengths if any(key[:3] == (task, arm.name, s) for key in study.results)]
        if arm.name == REFERENCE or not tied:
            continue
        rewards = {s: e.value for s in tied if (e := study.estimate(task, arm.name, s, "reward_mean"))}
        middle = tied[len(tied) // 2]
        best = max(rewards, key=lambda s: rewards[s]) if rewards else middle
        near = {rule: _nearest(arm, tied, kls.get(arm.name, {}), value) for rule, value in targets.items()}
        own = near or {"matched": _nearest(arm, tied, kls.get(arm.name, {}), common)}
        for rule, strength in (own | {"tight": tied[0], "loose": tied[-1], "best": best}).items():
            rules[rule][arm.name] = strength
    return Choice(common, rules)


def _nearest(arm: ArmRecord, tied: list[str], kls: dict[str, float], value: float | None) -> str:
    """The strength that was held at the value, else the one whose measured KL is nearest to it in ratio, else the
    middle one."""
    held = next((s for s in tied if arm.held and float(s) == value), None)
    if held is not None:
        return held
    return min(kls, key=lambda s: abs(math.log(kls[s] / value))) if kls and value else tied[len(tied) // 2]


def _rule(target: str) -> str:
    return f"target-{target}"


def held_kl(study: StudyRecord) -> str:
    """The KL by which arms are made comparable: the one at which they were held, else the reverse KL."""
    kinds = [arm.kind for arm in study.arms if arm.held]
    return "forward_kl" if kinds and all("forward" in kind for kind in kinds) else "reverse_kl"


def _kls(study: StudyRecord, task: str, metric: str) -> dict[str, dict[str, float]]:
    """KLs above zero, by arm and strength."""
    kls: dict[str, dict[str, float]] = {}
    for arm in study.arms:
        for strength in arm.strengths:
            estimate = study.estimate(task, arm.name, strength, metric)
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
