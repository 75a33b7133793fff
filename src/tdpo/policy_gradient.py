"""What PPO is made of, torch only: advantages, clipped losses, the KL penalty in every form that is right, controllers.

Everything works on tokens; nats are nats per token unless a name says otherwise. The KL constraint has a direction, a
form and a place, and not every combination has the gradient that its name promises: `_kl_choices` has the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .divergences import sampled_kl
from .kl_choices import KLConstraint as KLConstraint
from .token_statistics import TokenStats

# ---- advantages ----


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16), and the value targets.

    A_t = δ_t + γλ·A_{t+1}, δ_t = r_t + γ·V(s_{t+1}) − V(s_t). Beyond a sequence's last token there is nothing: no
    value is bootstrapped there, whether the response ended or was cut off.

    Args:
        rewards: `[S, T]`, one a token, after every penalty.
        values: `[S, T]`, V(s_t) of the state in which token t was drawn.
        mask: `[S, T]` bool, true for the tokens of a sequence, which come first in its row.

    Returns:
        Advantages and returns (advantage + value), `[S, T]` each; 0 beyond the end.

    Raises:
        ValueError: the shapes differ.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"rewards, values and mask must have one shape [S, T], got {tuple(rewards.shape)}, {tuple(values.shape)} "
            f"and {tuple(mask.shape)}"
        )
    advantages = torch.zeros_like(rewards)
    carried, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        inside = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(inside, delta + gamma * lam * carried, 0.0)
        next_value = torch.where(inside, values[:, t], 0.0)
        advantages[:, t] = carried
    return advantages, torch.where(mask, advantages + values, 0.0)


def moments(values: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> tuple[float, float]:
    """Mean and standard deviation (population) of all `values`; `total` adds sums up over processes."""
    wide = values.double().flatten()
    count, first = total(torch.stack([wide.new_tensor(wide.numel()), wide.sum()])).tolist()
    mean = first / max(count, 1.0)
    # The squares around the common mean, not the mean of squares: advantages far from 0 would lose their digits.
    square = float(total((wide - mean).square().sum()[None])[0])
    return mean, math.sqrt(square / max(count, 1.0))


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(returns − values)/Var(returns): 1 for a perfect critic, 0 for a constant one; 0 if nothing varies."""
    spread = float(returns.double().var(correction=0))
    return 1.0 - float((returns.double() - values.double()).var(correction=0)) / spread if spread > 0 else 0.0


# ---- losses ----


@dataclass(frozen=True)
class PolicyLoss:
    """`per_token` `[N]` to be minimised, the `ratio` `[N]` to the sampling policy, and which tokens are `clipped`."""

    per_token: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_range: float) -> PolicyLoss:
    """PPO's clipped surrogate, negated: max(−A·ρ, −A·clip(ρ, 1 ± ε)) (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        logp: `[N]`, with gradient. old_logp, advantages: `[N]`, constants.
        clip_range: ε > 0.
    """
    ratio = (logp - old_logp).exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return PolicyLoss(torch.maximum(free, held), ratio.detach(), (held > free).detach())


@dataclass(frozen=True)
class ValueLoss:
    """`per_token` `[N]`, half a squared error, and which tokens' values are clipped."""

    per_token: Tensor
    clipped: Tensor


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> ValueLoss:
    """½·max((V − R)², (clip(V, V_old ± ε) − R)²), `[N]` each; ½·(V − R)² where `clip_range` is None."""
    free = 0.5 * (values - returns).square()
    if clip_range is None:
        return ValueLoss(free, torch.zeros_like(free, dtype=torch.bool))
    held = 0.5 * (torch.clamp(values, old_values - clip_range, old_values + clip_range) - returns).square()
    return ValueLoss(torch.maximum(free, held), (held > free).detach())


def kl_penalty(constraint: KLConstraint, policy_logp: Tensor, reference_logp: Tensor) -> Tensor:
    """What is taken off the reward of each drawn token, before the coefficient, `[N]` nats; 0 if the KL is in the loss.

    In a detached reward only k1 = log π − log π_ref has the gradient of the reverse KL.
    """
    if constraint.place == "loss":
        return torch.zeros_like(policy_logp)
    return sampled_kl(policy_logp, reference_logp, "k1")


def kl_loss(constraint: KLConstraint, stats: TokenStats, old_logp: Tensor) -> Tensor | None:
    """The KL term of the loss, before the coefficient, `[N]` nats with gradient; None if the KL is in the reward.

    Sampled: k2 has the reverse KL's gradient as a loss, k3 the forward KL's. Both only on tokens that the policy drew
    itself: tokens of the older policy that sampled them are weighted with the ratio of the two. Exact: the KL over the
    vocabulary at each position, which needs no weight. In the loss a KL acts on the position it belongs to; what a
    token does to the KL of later positions is seen by k1 in the reward alone.
    """
    if constraint.place == "reward":
        return None
    if constraint.form == "exact":
        exact = stats.forward_kl if constraint.direction == "forward" else stats.reverse_kl
        assert exact is not None
        return exact
    estimate = sampled_kl(stats.policy_logp, stats.reference_logp, "k3" if constraint.direction == "forward" else "k2")
    return (stats.policy_logp - old_logp).exp().detach() * estimate


# ---- controllers ----


class KLCoefficient:
    """The coefficient of the KL: as it is, or after Ziegler et al. 2019.

    Adaptive: e = clip(KL/target − 1, ±0.2), coefficient ← coefficient·(1 + e·episodes/horizon), KL in nats per
    sequence, averaged over the episodes of one iteration.
    """

    LIMIT = 0.2

    def __init__(self, constraint: KLConstraint) -> None:
        self.constraint = constraint
        self.value = constraint.coefficient

    def update(self, kl: float, episodes: int) -> None:
        """Take in one iteration's mean `kl` per sequence over so many `episodes`.

        Raises:
            ValueError: the KL is not a finite number.
        """
        if self.constraint.controller == "fixed":
            return
        if not math.isfinite(kl):
            raise ValueError(f"the KL became {kl} nats a sequence; there is nothing to hold a coefficient to")
        assert self.constraint.target is not None and self.constraint.horizon is not None
        error = min(max(kl / self.constraint.target - 1.0, -self.LIMIT), self.LIMIT)
        self.value *= 1.0 + error * episodes / self.constraint.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])


class RewardScale:
    """Rewards in units of their running standard deviation, around their running mean (Welford, in batches)."""

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    def update(self, count: float, mean: float, std: float) -> None:
        """Take in a batch by its size, mean and standard deviation."""
        total = self.count + count
        gap = mean - self.mean
        self.square += std**2 * count + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    def apply(self, rewards: Tensor) -> Tensor:
        """`[S]` rewards, normalised; unchanged in spread where nothing has varied yet."""
        std = math.sqrt(self.square / self.count) if self.count else 0.0
        return (rewards - self.mean) / (std if std > 0 else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.square = (float(state[name]) for name in ("count", "mean", "square"))
