"""What PPO measures while it learns from one rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...policy_gradient import PolicyLoss, ValueLoss
from ...scoring.readings import Reading

# Sums over the tokens of an iteration's updates, and their number.
SUMS = ("policy_loss", "value_loss", "ratio_mean", "clip_fraction", "value_clip_fraction", "approx_kl", "tokens")
OF_THE_CRITIC = {"value_loss", "value_clip_fraction"}


class LearningMeter:
    """Sums over all tokens that were learned from since the iteration began, on this process.

    `approx_kl` is k3 between the policy that sampled and the one that learns, in nats per token: how far this iteration
    has moved the policy, which is not its distance to the reference.
    """

    def __init__(self) -> None:
        self.sums = Reading(len(SUMS))
        self.update = Reading(2)  # approx_kl and tokens of the update under way
        self.ratio_max = Reading(1, largest=True)
        self.updates = 0
        self.body_tokens = 0
        self.seconds = 0.0
        self.has_critic = True

    @torch.no_grad()
    def add(
        self, begins_update: bool, body_tokens: int, policy: PolicyLoss, value: ValueLoss | None, log_ratio: Tensor
    ) -> None:
        """Take in a micro-batch; `value` is None without a critic, `log_ratio` `[N]` is log π − log π_old."""
        if begins_update:
            self.update.set(torch.zeros(2))
            self.updates += 1
        moved = torch.expm1(log_ratio) - log_ratio
        self.has_critic = value is not None
        nothing = torch.zeros_like(moved)
        value_loss, value_clipped = (nothing, nothing) if value is None else (value.per_token, value.clipped)
        columns = (policy.per_token, value_loss, policy.ratio, policy.clipped, value_clipped, moved)
        sums = [column.detach().double().sum() for column in columns]
        tokens = sums[-1].new_full((), len(log_ratio))
        self.sums.add(torch.stack([*sums, tokens]))
        self.update.add(torch.stack([sums[-1], tokens]))
        if len(log_ratio):
            self.ratio_max.add(policy.ratio.max().reshape(1))
        self.body_tokens += body_tokens

    @property
    def readings(self) -> list[Reading]:
        return [self.sums, self.update, self.ratio_max]

    def last_update(self) -> Tensor:
        """Sum of approx_kl and number of tokens of the last update, float64 `[2]`."""
        return self.update.values

    def averages(self, total: Callable[[Tensor], Tensor], largest: Callable[[float], float]) -> dict[str, float]:
        """Means over the tokens of all processes, the seconds that learning took, and tokens of the body a second.

        `total` sums a vector over processes, and `largest` is the largest of their numbers.
        """
        extra = torch.tensor([float(self.body_tokens), self.seconds, 1.0], dtype=torch.float64)
        *sums, tokens, body, seconds, processes = total(torch.cat([self.sums.values, extra])).tolist()
        numbers = {
            name: value / max(tokens, 1.0)
            for name, value in zip(SUMS[:-1], sums, strict=True)
            if self.has_critic or name not in OF_THE_CRITIC
        }
        return {
            **numbers,
            "ratio_max": largest(self.ratio_max.values.tolist()[0]),
            "learning_seconds": seconds / processes,
            "learning_tokens_per_second": body * processes / max(seconds, 1e-9),
        }

    def state_dict(self) -> dict[str, Any]:
        """All that was summed up, for a checkpoint."""
        numbers = {name: v.values if isinstance(v, Reading) else v for name, v in vars(self).items()}
        return {**numbers, "ratio_max": self.ratio_max.values.tolist()[0]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LearningMeter:
        """The meter of `state_dict`."""
        meter = cls()
        for name, value in state.items():
            known = getattr(meter, name, None)
            if isinstance(known, Reading):
                known.set(torch.as_tensor(value).reshape(-1))
            else:
                setattr(meter, name, value)
        return meter
