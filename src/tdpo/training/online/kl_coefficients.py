"""The coefficient of PPO's KL under each controller: fixed, adaptive (`policy_gradient`), or dual."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from ...batches import ResponseBatch
from ...policy_gradient import KLCoefficient, KLConstraint
from ...scoring.kl_target import KLTargetController
from ...scoring.readings import Reading
from ...token_statistics import TokenStats


class IterationController(KLTargetController):
    """Moves the coefficient once an iteration, which is several updates, by gentler steps.

    An iteration goes as far as several updates, so it is looked ahead less and averaged over less. A penalty of many
    nats in the reward drowns the rewards, and the noise of k1 then drives the policy away from the target. So the
    coefficient is at most a factor of e from its dual variable.
    """

    SMOOTHING, DUAL_AHEAD, AHEAD = 0.5, 2, 2
    POWER, LIMIT = 1.0, 1.0
    UPDATES, PATIENCE = 2, 8


class DualCoefficient:
    """A coefficient that dual ascent moves (`scoring.kl_target`), so that an exact KL along own responses meets a
    target.

    A KL in the loss acts in every update, and the coefficient moves after each of them. A KL in the reward acts through
    the advantages, which are computed once an iteration; there it moves once an iteration.
    """

    def __init__(self, constraint: KLConstraint) -> None:
        assert constraint.target is not None
        self.direction = constraint.held_direction
        self.moves_in_updates = constraint.place == "loss"
        controller = KLTargetController if self.moves_in_updates else IterationController
        self.controller = controller(constraint.target, constraint.coefficient, "the KL to the reference", "kl")

    @property
    def value(self) -> float:
        """The coefficient as it is now, per nat."""
        return self.controller.coefficient

    def within(self, at_start: float) -> float:
        """The coefficient of an update in an iteration that began with `at_start`."""
        return self.value if self.moves_in_updates else at_start

    def update(self, kl: float, episodes: int) -> None:
        """Move it by one iteration, where updates do not: `kl` is the mean per sequence over `episodes` sequences.

        Raises:
            ValueError: the KL is not a finite number.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the KL became {kl} nats a sequence; there is nothing to hold a coefficient to")
        if not self.moves_in_updates:
            self.controller.move(kl * episodes, episodes)

    def observe(self, stats: TokenStats, batch: ResponseBatch) -> None:
        """Take in a micro-batch that is learned from."""
        if not self.moves_in_updates:
            return
        per_token = stats.forward_kl if self.direction == "forward" else stats.reverse_kl
        assert per_token is not None
        self.controller.observe_sum(per_token.detach().double().sum(), batch.counts.sequences)

    @property
    def readings(self) -> list[Reading]:
        """What has been observed since the last move."""
        return [self.controller.observed]

    def end_update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move it by what was observed in this update; `total` sums a vector over processes."""
        self.controller.end_update(total)

    def held_out_kl(self, metrics: Mapping[str, float]) -> None:
        """Nothing: it is held along own responses, of which each is new."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self.controller.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state)


class IterationCoefficient(KLCoefficient):
    """A fixed or an adaptive coefficient, which stays what it is within an iteration."""

    controller: KLTargetController | None = None
    readings: ClassVar[list[Reading]] = []

    def within(self, at_start: float) -> float:
        return at_start

    def observe(self, stats: TokenStats, batch: ResponseBatch) -> None:
        """Nothing: it moves by what an iteration measures."""


def coefficient_of(constraint: KLConstraint) -> DualCoefficient | IterationCoefficient:
    """The coefficient that a constraint's controller moves, or keeps."""
    return DualCoefficient(constraint) if constraint.controller == "dual" else IterationCoefficient(constraint)
