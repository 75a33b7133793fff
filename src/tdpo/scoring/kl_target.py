"""The coefficient of a KL beside a loss, moved so that the KL meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .readings import Reading


class KLTargetController:
    """Moves the coefficient λ of a KL beside a loss after every update, so that the KL meets a target.

    Dual ascent in log λ, and a proportional part, both on a KL that is looked at some updates ahead:

        k is an average over pairs whose weight falls by 0.85 an update, s its rise in the last update
        e(n) = log((k + n·s)/target), clipped to ±3                 where the KL will be n updates from now
        log λ₀ ← log λ₀ + 0.5·clip(e(5), ±1)                        the dual variable: λ where the KL is on target
        λ = λ₀·exp(5·clip(e(12), ±1.2))                             more above the target, less below

    A relative error is used because the λ of a target is unknown by orders of magnitude. The look ahead makes up for
    what delays the answer of the KL: the average, and the momentum of Adam, whose mean age is ten updates. It goes
    along a straight line of nats, as the KL does that nothing holds. λ is up to 400 times less or more than λ₀,
    because the run is short and the proportional part acts at once.

    The dual variable does not fall while the KL is on its way, that is, where at the pace of the last five updates it
    will be on target within 40: that it has not arrived yet says nothing about λ₀. Without this rule λ₀ would fall all
    the way to the target, and be too small to stop the policy there.

    Pairs that are learned from have more KL than held-out ones, whose prompts are others. Where evaluations measure the
    latter (`see_held_out`), the target is theirs: what is compared with it is k times a running ratio of the two.

    Args:
        target: of the KL, > 0, in nats per sequence.
        coefficient: λ₀ at the start, > 0, per nat. It need not be right.
        what: which KL it is, and `section`: the section of a recipe that has its target; both for messages.
    """

    SMOOTHING = 0.85
    DUAL_STEP, DUAL_LIMIT, DUAL_AHEAD = 0.5, 1.0, 5
    POWER, LIMIT, AHEAD = 5.0, 1.2, 12
    FARTHEST = 3.0
    UPDATES, PATIENCE = 5, 40  # over which the pace is taken; in which the KL has to be on target at that pace
    LEAST = 0.005  # of λ₀ times the target
    MOST = 1e8  # of λ₀, so that a target out of reach makes no number overflow
    NEAR = 0.15  # a KL that is this near to its target has met it
    HELD_OUT_WEIGHT, HELD_OUT_LIMIT = 0.4, math.log(3.0)  # of an evaluation in the ratio's logarithm; how far it goes

    def __init__(
        self, target: float, coefficient: float, what: str = "the KL beside the loss", section: str = "loss.kl"
    ) -> None:
        self.target, self.what, self.section = target, what, section
        self.at_target = coefficient
        self.recent = [0.0]  # k after the last updates, the newest last
        self.sum, self.pairs = 0.0, 0.0
        self.held_out = 0.0  # the logarithm of the KL on held-out pairs over that on pairs that are learned from
        self.forget_update()

    @property
    def coefficient(self) -> float:
        """λ as it is now, per nat."""
        return self.at_target * math.exp(self.POWER * _clipped(self._error(self.AHEAD), self.LIMIT))

    @property
    def kl(self) -> float | None:
        """The average of the KL over the last updates, in nats per sequence; None before the first."""
        return self.sum / self.pairs if self.pairs else None

    @property
    def aim(self) -> float:
        """What the KL of pairs that are learned from has to be, so that held-out pairs are on target."""
        return self.target * math.exp(-self.held_out)

    def see_held_out(self, kl: float) -> None:
        """Take in what an evaluation between two updates found on held-out pairs, in nats per sequence.

        Far below the target nothing is learned from it: the average k lags behind a KL that rises."""
        if self.kl is not None and self.kl > self.aim / 3 and 0.0 < kl < math.inf:
            seen = _clipped(math.log(kl / self.kl), self.HELD_OUT_LIMIT)
            self.held_out += self.HELD_OUT_WEIGHT * (seen - self.held_out)

    def forget_update(self) -> None:
        """Begin an update: what was observed since the last one does not count."""
        self.observed = Reading(2)  # sum of the KLs and their number

    def observe(self, kl: Tensor) -> None:
        """Take in the KLs `[P]` of a micro-batch, in nats per sequence."""
        self.observe_sum(kl.detach().double().sum(), kl.numel())

    def observe_sum(self, kl: Tensor, count: int) -> None:
        """Take in the sum of the KLs of a micro-batch, in nats, over so many sequences or pairs."""
        total = kl.detach().double()
        self.observed.add(torch.stack([total, total.new_full((), count)]))

    def end_update(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move λ by what was observed in this update; `total` sums a vector over processes, which all get one λ."""
        kl_sum, pairs = total(self.observed.values).tolist()
        self.forget_update()
        if pairs:
            self.move(kl_sum, pairs)

    def move(self, kl_sum: float, pairs: float) -> None:
        """Move λ by the pairs of one update, over which the KL sums to `kl_sum`."""
        self.sum, self.pairs = self.SMOOTHING * self.sum + kl_sum, self.SMOOTHING * self.pairs + pairs
        self.recent = [*self.recent, self.sum / self.pairs][-self.UPDATES - 1 :]
        moved = self.at_target * math.exp(self._dual_step())
        self.at_target = min(max(moved, self.LEAST / self.target), self.MOST)

    def _dual_step(self) -> float:
        """How log λ₀ moves."""
        step = self.DUAL_STEP * _clipped(self._error(self.DUAL_AHEAD), self.DUAL_LIMIT)
        return max(step, 0.0) if self._is_on_its_way() else step

    def _is_on_its_way(self) -> bool:
        """Whether the KL rises to the target soon enough, or has not had the time to show it."""
        updates = len(self.recent) - 1
        pace = (self.recent[-1] - self.recent[0]) / max(updates, 1)
        return updates < self.UPDATES or self.recent[-1] + self.PATIENCE * pace >= self.aim

    def _error(self, updates: int) -> float:
        """The logarithm of KL/aim so many updates from now, if the KL goes on as in the last update."""
        rise = self.recent[-1] - self.recent[-2] if len(self.recent) > 1 else 0.0
        relative = (self.recent[-1] + updates * rise) / self.aim
        return _clipped(math.log(max(relative, math.exp(-self.FARTHEST))), self.FARTHEST)

    def missed(self) -> str:
        """Why the KL is not near its target as a run ends, and what to do; empty where it is."""
        kl = None if self.kl is None else self.kl * math.exp(self.held_out)
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

    def state_dict(self) -> dict[str, Any]:
        return {
            "kl_at_target": self.at_target,
            "kl_recent": self.recent,
            "kl_sum": self.sum,
            "kl_pairs": self.pairs,
            "kl_held_out": self.held_out,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; a checkpoint of a run without a target has none, and nothing changes."""
        if "kl_recent" in state:
            self.at_target, self.sum, self.pairs = (float(state[f"kl_{key}"]) for key in ("at_target", "sum", "pairs"))
            self.recent = [float(kl) for kl in state["kl_recent"]]
            self.held_out = float(state.get("kl_held_out", 0.0))  # earlier versions had none


def _clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
