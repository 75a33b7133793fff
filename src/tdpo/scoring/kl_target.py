"""The coefficient of a KL beside a loss, moved so that the KL meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class KLTargetController:
    """Moves the coefficient λ of a KL beside a loss after every update, so that the KL meets a target.

    Dual ascent in log λ on a KL that is looked at a few updates ahead, and a proportional part:

        r = log(KL/target), clipped to ±3, with the KL as an average over pairs whose weight falls by 0.8 an update
        a = r + 5·(r − r of the update before)                      where the KL will be 5 updates from now
        log λ₀ ← log λ₀ + 0.4·clip(a, ±1)                           the dual variable: λ where the KL is on target
        λ = λ₀·exp(3·clip(a, ±1.5))                                 more above the target, less below

    A relative error is used because the λ of a target is unknown by orders of magnitude. Dual ascent alone is too
    slow for runs of 30 to 100 updates and swings around the target: it goes on falling while the KL rises from 0. The
    look ahead turns it in time, and the proportional part acts at once: λ is up to 90 times less or more than λ₀. So
    λ is λ₀/90 at the start, where the policy is the reference and no KL is above the target.

    Args:
        target: of the KL, > 0, in nats per sequence.
        coefficient: λ₀ at the start, > 0, per nat. It need not be right.
        what: which KL it is, and `section`: the section of a recipe that has its target; both for messages.
    """

    SMOOTHING, AHEAD = 0.8, 5.0
    DUAL_STEP, DUAL_LIMIT = 0.4, 1.0
    POWER, LIMIT, FARTHEST = 3.0, 1.5, 3.0
    RANGE = (1e-8, 1e8)  # of λ₀, so that a target out of reach makes no number overflow
    NEAR = 0.15  # a KL that is this near to its target has met it

    def __init__(
        self, target: float, coefficient: float, what: str = "the KL beside the loss", section: str = "loss.kl"
    ) -> None:
        self.target, self.what, self.section = target, what, section
        self.at_target = coefficient
        self.distance = self.ahead = -self.FARTHEST
        self.sum, self.pairs = 0.0, 0.0
        self.forget_update()

    @property
    def coefficient(self) -> float:
        """λ as it is now, per nat."""
        return self.at_target * math.exp(self.POWER * _clipped(self.ahead, self.LIMIT))

    @property
    def kl(self) -> float | None:
        """The average of the KL over the last updates, in nats per sequence; None before the first."""
        return self.sum / self.pairs if self.pairs else None

    def forget_update(self) -> None:
        """Begin an update: what was observed since the last one does not count."""
        self._observed = torch.zeros(2, dtype=torch.float64)

    def observe(self, kl: Tensor) -> None:
        """Take in the KLs `[P]` of a micro-batch, in nats per sequence."""
        of_batch = kl.detach().double().sum().cpu()
        self._observed += torch.stack([of_batch, torch.tensor(float(kl.numel()), dtype=torch.float64)])

    def end_update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move λ by what was observed in this update; `total` sums a vector over processes, which all get one λ."""
        kl_sum, pairs = total(self._observed).tolist()
        self.forget_update()
        if pairs:
            self.move(kl_sum, pairs)

    def move(self, kl_sum: float, pairs: float) -> None:
        """Move λ by the pairs of one update, over which the KL sums to `kl_sum`."""
        self.sum, self.pairs = self.SMOOTHING * self.sum + kl_sum, self.SMOOTHING * self.pairs + pairs
        relative = max(self.sum / self.pairs / self.target, math.exp(-self.FARTHEST))
        before, self.distance = self.distance, _clipped(math.log(relative), self.FARTHEST)
        self.ahead = self.distance + self.AHEAD * (self.distance - before)
        moved = self.at_target * math.exp(self.DUAL_STEP * _clipped(self.ahead, self.DUAL_LIMIT))
        self.at_target = min(max(moved, self.RANGE[0]), self.RANGE[1])

    def missed(self) -> str:
        """Why the KL is not near its target as a run ends, and what to do; empty where it is."""
        kl = self.kl
        if kl is None or abs(kl / self.target - 1.0) <= self.NEAR:
            return ""
        what = f"{self.what} ended at {kl:.3g} nats a sequence, and its target was {self.target:g}"
        if kl < self.target:
            return f"{what}: with λ = {self.coefficient:.2g} the loss took the policy no farther in these updates. " + (
                f"Raise the learning rate, train longer, or lower {self.section}.target."
            )
        return f"{what}: λ = {self.coefficient:.2g} has not brought the policy back yet. " + (
            f"Lower the learning rate, train longer, or raise {self.section}.target."
        )

    def state_dict(self) -> dict[str, float]:
        return {
            "kl_at_target": self.at_target,
            "kl_distance": self.distance,
            "kl_ahead": self.ahead,
            "kl_sum": self.sum,
            "kl_pairs": self.pairs,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`; a checkpoint of a run without a target has none, and nothing changes."""
        if "kl_at_target" in state:
            names = ("at_target", "distance", "ahead", "sum", "pairs")
            for name in names:
                setattr(self, name, float(state[f"kl_{name}"]))


def _clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
