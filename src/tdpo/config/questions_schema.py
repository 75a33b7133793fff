"""The questions of a study whose arms are held at targets: contrasts of arms at measured points, as typed sections.

How they are answered is `tdpo.comparison`'s. Whatever could never be answered is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..methods import REFERENCE
from ..records.metric_names import OF_EMBEDDINGS, OF_REWARDS
from ._sections import PositiveFloat, Section, Text
from .claims_schema import VARIANCE, checked_metric

Problem = tuple[str, str]  # key inside the question, reason
BALANCE = 1e-9  # weights that sum to less are a contrast
AT = "@"  # between an arm and one of its strengths


@dataclass(frozen=True)
class ArmChoice:
    """The arms of a study as its questions see them: their targets (empty for an arm that is not held at any), and
    their strengths as text."""

    targets: Mapping[str, Sequence[float]]
    strengths: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([REFERENCE, *self.targets, *self.strengths]))


def arm_choice(
    arms: Iterable[Any], best_of: Sequence[float] | None = None, temperatures: Sequence[float] | None = None
) -> ArmChoice:
    """What questions may name, from a study's `arms` and its baselines without training."""
    of_arms = list(arms)
    baselines = {name: values for name, values in (("best_of", best_of), ("temperature", temperatures)) if values}
    strengths = {**baselines, **{arm.name: arm.strengths for arm in of_arms}}
    return ArmChoice(
        {arm.name: getattr(arm, "targets", None) or [] for arm in of_arms},
        {name: [f"{value:g}" for value in values] for name, values in strengths.items()},
    )


class Contrast(Section):
    """A contrast: what the mean of some arms has over the mean of others, at each target and on each task. Positive is
    more of the metric in `plus`."""

    text: Text
    """The question in words, as the report shows it."""
    metric: Text
    """What is compared: a metric of prompts.csv, such as `gated_embedding_diversity`, or `reward_variance`."""
    plus: list[Text] = []  # noqa: RUF012  # pydantic copies it
    """Arms whose mean is taken: an arm that is held at targets, `reference`, or an arm with strengths or a baseline, as
    `arm@strength` (`dpo@0.1`, `best_of@4`; the strength may be left out where there is one)."""
    minus: list[Text] = []  # noqa: RUF012
    """Arms whose mean is subtracted."""
    weights: dict[Text, float] = {}  # noqa: RUF012
    """In place of plus and minus: a weight for each arm, summing to 0. So an interaction is asked for:
    {online_dpo_forward: 1, online_dpo_reverse: -1, ppo_forward: -1, ppo_reverse_exact: 1}."""
    at_targets: list[PositiveFloat] = []  # noqa: RUF012
    """The targets at which arms are compared, each a comparison of its own; empty where no arm is held at any."""
    target_kl: Literal["reverse_kl", "forward_kl"] | None = None
    """The KL in which the arms were to meet; null is that of the study's `target_direction`, or the reverse KL without
    one. The other one is what the secondary number is adjusted for."""
    component: Literal["within", "between"] | None = None
    """Of `reward_variance`: its part within prompts or between prompts; null is their sum."""
    primary: bool = False
    """Whether it belongs to the family whose p-values are adjusted together (Holm)."""
    smallest_effect: PositiveFloat | None = None
    """The smallest difference that would matter, in the metric's unit. A 90 % interval within ± this is no relevant
    difference. Primary questions must name it."""
    tasks: Annotated[list[Text] | None, Field(min_length=1)] = None
    """The tasks on which it is asked; null is all that measure the metric."""

    @field_validator("metric")
    @classmethod
    def _has_values_of_prompts(cls, metric: str) -> str:
        return checked_metric(metric)

    @field_validator("plus", "minus")
    @classmethod
    def _no_arm_twice(cls, arms: list[str], info: ValidationInfo) -> list[str]:
        if len(set(arms)) < len(arms):
            raise ValueError("names an arm twice; give each once")
        both = [arm for arm in arms if arm in info.data.get("plus", ())]
        if both:
            raise ValueError(f"names {both[0]}, which plus has; give each arm one side")
        return arms

    @field_validator("weights")
    @classmethod
    def _is_a_contrast(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if not {"plus", "minus"} <= info.data.keys():
            return weights
        plus, minus = info.data["plus"], info.data["minus"]
        if weights and (plus or minus):
            raise ValueError("stands beside plus or minus; give either weights, or plus and minus")
        if not weights and not (plus and minus):
            raise ValueError("is empty, and plus or minus names no arm: a contrast needs both, or weights")
        zero = [arm for arm, weight in weights.items() if weight == 0]
        if zero:
            raise ValueError(f"gives {zero[0]} the weight 0; leave it out")
        total = sum(weights.values())
        if abs(total) > BALANCE:
            raise ValueError(f"sum to {total:g}, not 0: a contrast is a difference")
        return weights

    @field_validator("at_targets")
    @classmethod
    def _no_target_twice(cls, targets: list[float]) -> list[float]:
        if len(set(targets)) < len(targets):
            raise ValueError("names a target twice; give each once")
        return targets

    @field_validator("component")
    @classmethod
    def _only_of_variances(cls, component: str | None, info: ValidationInfo) -> str | None:
        if component is not None and info.data.get("metric") not in (None, VARIANCE):
            raise ValueError(f"has no effect on {info.data['metric']}; it splits {VARIANCE}")
        return component

    @field_validator("smallest_effect")
    @classmethod
    def _primary_questions_have_one(cls, effect: float | None, info: ValidationInfo) -> float | None:
        if effect is None and info.data.get("primary"):
            raise ValueError("must be given for a primary question: say which difference would matter")
        return effect

    @property
    def held_kl(self) -> str:
        """The KL in which the arms were to meet."""
        return self.target_kl or "reverse_kl"

    @property
    def weight_of(self) -> dict[str, float]:
        """The weight of each arm; they sum to 0, and where the question has plus and minus each side is a mean."""
        if self.weights:
            return dict(self.weights)
        sides = ((self.plus, 1.0), (self.minus, -1.0))
        return {arm: sign / len(arms) for arms, sign in sides for arm in arms}

    def problems(
        self, arms: ArmChoice, tasks: Sequence[str], *, has_reward: bool, has_embeddings: bool
    ) -> list[Problem]:
        """What keeps a study from answering it: (key of the question, reason)."""
        key = "weights" if self.weights else ""
        problems = []
        held = []
        for arm in self.weight_of:
            place = key or ("plus" if arm in self.plus else "minus")
            reason = why_no_cells(arm, arms, self.at_targets)
            if reason is not None:
                problems.append((place, reason))
            held += [arm] if arms.targets.get(arm) else []
        if self.at_targets and not held and not problems:
            problems.append(("at_targets", "has no effect: none of its arms is held at a target; remove it"))
        if held and not self.at_targets:
            known = ", ".join(f"{target:g}" for target in arms.targets[held[0]])
            problems.append(("at_targets", f"is empty, but {held[0]} is held at targets: name some of {known}"))
        if not has_embeddings and self.metric in OF_EMBEDDINGS:
            problems.append(("metric", f"{self.metric} needs sentence embeddings, and embeddings is null"))
        if not has_reward and self.metric in OF_REWARDS:
            problems.append(("metric", f"cannot be answered by {self.metric}: no task has a reward"))
        for task in self.tasks or ():
            if task not in tasks:
                problems.append(("tasks", f"names {task}, which is no task of this study ({', '.join(tasks)})"))
        return problems


def why_no_cells(arm: str, arms: ArmChoice, at_targets: Sequence[float]) -> str | None:
    """Why a study has no cells for `arm` (or arm@strength) at these targets; None where it has."""
    name, at, strength = arm.partition(AT)
    if name not in arms.names:
        nearest = get_close_matches(name, arms.names, 1)
        meant = f"; did you mean {nearest[0]}?" if nearest else ": add it to arms"
        return f"names {name}, which is no arm of this study{meant}"
    if name == REFERENCE:
        return f"names {arm}, but the reference has no strength; write {REFERENCE}" if at else None
    targets, strengths = arms.targets.get(name), arms.strengths.get(name, ())
    if targets:
        if at:
            return f"names {arm}, but {name} is held at targets; write {name}, and its target in at_targets"
        lacking = [target for target in at_targets if target not in targets]
        return f"names {name}, which is not held at {lacking[0]:g}: add it to the arm's targets" if lacking else None
    if at:
        return None if strength in strengths else f"names {arm}; {name} has the strengths {', '.join(strengths)}"
    if len(strengths) != 1:
        return f"names {name}, which has the strengths {', '.join(strengths)}: write one as {name}{AT}{strengths[0]}"
    return None


def question_problems(
    questions: Sequence[Contrast], arms: ArmChoice, tasks: Sequence[str], *, has_reward: bool, has_embeddings: bool
) -> list[Problem]:
    """What keeps a study from answering `questions`: (full key, reason)."""
    return [
        (f"questions[{number}].{key}", reason)
        for number, question in enumerate(questions)
        for key, reason in question.problems(arms, tasks, has_reward=has_reward, has_embeddings=has_embeddings)
    ]
