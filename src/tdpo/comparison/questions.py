"""The questions that a claim asks, one for each number: what the parts of a study's claims stand for."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..config import Claim, ClaimPart
from ..methods import ARMS

MATCHED = {
    "reward_mean": "at matched reward",
    "forward_kl": "at matched forward KL",
    "reverse_kl": "at matched reverse KL",
}
NOT_BELOW = math.log(0.9)  # a variance counts as kept if a loss of a tenth or more is excluded


@dataclass(frozen=True)
class Question:
    """A number before it is known: what `first` has over `second`, a gap of frontiers or a log ratio of variances."""

    first: str
    second: str
    metric: str
    matched: str | None  # None: log ratio of reward variances, averaged over strengths
    primary: bool = True  # it decides, and is not only shown
    unit: str = ""
    negative: bool = False  # the claim says less
    trained_only: bool = False  # without the reference as a point
    scale: str = ""  # "reference_sd" or "reference_variance", of the reward, by which a task's numbers are divided
    supports_above: float = 0.0
    relation: str = "against"

    @property
    def text(self) -> str:
        """The question in words."""
        names = f"{ARMS[self.first].label} {self.relation} {ARMS[self.second].label}"
        how = "averaged over strengths" if self.matched is None else MATCHED[self.matched]
        return f"{names}, {how}{', between trained points only' if self.trained_only else ''}"


def questions_of(claim: Claim, arms: Collection[str]) -> list[Question]:
    """The questions of a claim for a study with these arms: by part, opponent and what is matched, in this order."""
    return [
        _question(part, opponent, matched)
        for part in claim.parts
        if not (part.optional and part.missing_arms(arms))
        for opponent in part.against
        for matched in part.at_matched or (None,)
    ]


def _question(part: ClaimPart, opponent: str, matched: str | None) -> Question:
    relations = {"more": "above", "less": "below", "not_less": "not below"}
    return Question(
        part.arm,
        opponent,
        part.metric,
        matched,
        primary=part.decides,
        unit=part.unit or "",
        negative=part.says == "less",
        trained_only=part.trained_only,
        scale=part.divided_by or "",
        supports_above=NOT_BELOW if part.says == "not_less" else 0.0,
        relation=relations[part.says] if matched is None else "against",
    )
