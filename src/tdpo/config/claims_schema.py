"""The claims of a study: what is asked of its numbers, as typed sections. How a claim is judged is `tdpo.comparison`'s.

Whatever could never be judged is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from ..methods import REFERENCE
from ..records.metric_names import BY_KEY, OF_EMBEDDINGS, OF_REWARDS, PER_PROMPT
from ._sections import Section, Text
from ._yaml import read_yaml

ArmName = Literal[
    "sft", "dpo", "dpo_forward", "dpo_reverse", "tdpo1", "tdpo2", "online_dpo_forward", "online_dpo_reverse",
    "online_tdpo2", "ppo_reverse", "ppo_reverse_exact", "ppo_forward", "rloo_reverse", "rloo_forward",
]  # fmt: skip
Opponent = Literal["reference", ArmName]
Matched = Literal["reward_mean", "forward_kl", "reverse_kl"]
VARIANCE = "reward_variance"
Problem = tuple[str, str]  # key inside the part or claim, reason


def checked_metric(metric: str) -> str:
    """The metric, if it has values of prompts and so an interval. Raises ValueError with what was meant, if not."""
    if metric in PER_PROMPT:
        return metric
    if metric in BY_KEY:
        raise ValueError(f"cannot be judged by {metric}: it has no value for a prompt, and so no interval")
    nearest = get_close_matches(metric, PER_PROMPT, 1)
    meant = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(PER_PROMPT)}"
    raise ValueError(f"names no metric: {metric}; {meant}")


class ClaimPart(Section):
    """Comparisons of one arm with others, one for each of `against` and each of `at_matched`: numbers with an interval,
    signed so that positive speaks for the claim."""

    arm: ArmName
    """The arm that the claim is about."""
    against: Annotated[list[Opponent], Field(min_length=1)]
    """The arms that it is compared with; `reference` only without `at_matched`."""
    metric: Text
    """What is compared: a metric of prompts.csv, such as `reward_mean`, `embedding_diversity` or `mode_coverage`, or
    `reward_variance`."""
    at_matched: list[Matched] = []  # noqa: RUF012  # pydantic copies it
    """What is held equal: the number is the gap of the two arms' frontiers over the range that both reach. An empty
    list compares with the reference, averaged over strengths: the logarithm of the ratio of reward variances."""
    says: Literal["more", "less", "not_less"] = "more"
    """What the claim says: that the arm has `more` of the metric, `less`, or `not_less` (of variances: a loss of a
    tenth is excluded)."""
    decides: bool = True
    """Whether the claim's verdict depends on it; other parts are shown beside it."""
    trained_only: bool = False
    """Leave out the reference as a point of each frontier, and with it the line to an arm's first point."""
    divided_by: Literal["reference_sd", "reference_variance"] | None = None
    """Divide a task's numbers by the standard deviation or the variance of the reference's reward, so that tasks with
    different rewards can be averaged."""
    unit: Text | None = None
    """Of the number, for the report."""
    optional: bool = False
    """Leave the part out where the study has not all of its arms."""

    @field_validator("against")
    @classmethod
    def _not_itself(cls, against: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("arm") in against:
            raise ValueError(f"names {info.data['arm']}, the arm itself; name others")
        return against

    @field_validator("metric")
    @classmethod
    def _has_values_of_prompts(cls, metric: str) -> str:
        return checked_metric(metric)

    @field_validator("at_matched")
    @classmethod
    def _can_be_compared(cls, matched: list[str], info: ValidationInfo) -> list[str]:
        against, metric = info.data.get("against"), info.data.get("metric")
        if against is None or metric is None:
            return matched
        if metric in matched:
            raise ValueError(f"has {metric}, the metric itself: it cannot differ where it is equal")
        if matched and REFERENCE in against:
            raise ValueError("must be empty against the reference: it is one point, and has no frontier")
        if not matched and (against != [REFERENCE] or metric != VARIANCE):
            raise ValueError(f"is empty, which only {VARIANCE} against [reference] may be; name {_listed(Matched)}")
        return matched

    @field_validator("says")
    @classmethod
    def _only_variances_are_kept(cls, says: str, info: ValidationInfo) -> str:
        if says == "not_less" and info.data.get("at_matched"):
            raise ValueError("can be not_less only without at_matched, where a ratio says what a tenth is")
        return says

    @field_validator("trained_only", "divided_by")
    @classmethod
    def _only_of_frontiers(cls, value: bool | str | None, info: ValidationInfo) -> bool | str | None:
        if value and info.data.get("at_matched") == []:
            raise ValueError("has no effect without at_matched; remove it")
        return value

    def missing_arms(self, arms: Collection[str]) -> list[str]:
        """Its arms that are not among `arms`; the reference is an arm of every study."""
        return [arm for arm in (self.arm, *self.against) if arm not in arms and arm != REFERENCE]

    def problems(self, arms: Collection[str], *, has_reward: bool, has_embeddings: bool) -> list[Problem]:
        """What keeps a study with these arms from judging it: (key of the part, reason)."""
        reasons = []
        missing = self.missing_arms(arms)
        if missing and not self.optional:
            key = "arm" if missing[0] == self.arm else "against"
            reasons.append((key, f"names {missing[0]}, which is no arm of this study: add it to arms, or set optional"))
        if not has_embeddings and self.metric in OF_EMBEDDINGS:
            reasons.append(("metric", f"{self.metric} needs sentence embeddings, and embeddings is null"))
        if not has_reward and (self.metric in OF_REWARDS or self.divided_by):
            reasons.append(("metric", f"cannot be judged by {self.metric}: no task has a reward"))
        if not has_reward and "reward_mean" in self.at_matched:
            reasons.append(("at_matched", "has reward_mean, but no task has a reward"))
        return reasons


class Claim(Section):
    """A sentence that the study judges: supported if all parts that decide are, contradicted if any of them is, else
    undecided."""

    text: Text
    """The claim in words, as the report shows it."""
    parts: Annotated[list[ClaimPart], Field(min_length=1)]

    @field_validator("parts")
    @classmethod
    def _something_decides(cls, parts: list[ClaimPart]) -> list[ClaimPart]:
        if not any(part.decides for part in parts):
            raise ValueError("has no part that decides; set decides: true for those that the claim rests on")
        return parts


def claim_problems(
    claims: list[Claim], arms: Collection[str], *, has_reward: bool, has_embeddings: bool
) -> list[Problem]:
    """What keeps a study from judging `claims`: (full key, reason)."""
    all_problems = []
    for number, claim in enumerate(claims):
        for place, part in enumerate(claim.parts):
            problems = part.problems(arms, has_reward=has_reward, has_embeddings=has_embeddings)
            all_problems += [(f"claims[{number}].parts[{place}].{key}", reason) for key, reason in problems]
        if not any(part.decides and not (part.optional and part.missing_arms(arms)) for part in claim.parts):
            all_problems.append((f"claims[{number}].parts", "has no part that decides and whose arms the study has"))
    return all_problems


@cache
def built_in_claims() -> tuple[Claim, ...]:
    """The claims of a study that names none of its own."""
    text = files("tdpo.config").joinpath("claims.yaml").read_text(encoding="utf-8")
    return tuple(Claim.model_validate(entry) for entry in read_yaml(text)[0])


def _listed(choices: object) -> str:
    return ", ".join(get_args(choices))
