"""The mathematics of PPO, torch only: advantages, clipped losses, the KL penalty in every right form, controllers.

Everything works on tokens, in nats per token unless a name says otherwise. The KL constraint has a direction, a
form and a place, and not every combination has the gradient that its name promises: `kl_choices` has the table.
Shapes: the legend is in `token_statistics`; `*N` are tokens in any arrangement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .divergences import sampled_kl
from .kl_choices import KLConstraint as KLConstraint
from .token_statistics import TokenStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


# ---- advantages ----


def gae(
    rewards: Float[Tensor, "S T"],
    values: Float[Tensor, "S T"],
    mask: Bool[Tensor, "S T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "S T"], Float[Tensor, "S T"]]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16), and the value targets.

    A_t = δ_t + γλ·A_{t+1}, δ_t = r_t + γ·V(s_{t+1}) − V(s_t). After a sequence's last token the value is 0: nothing
    is bootstrapped there, whether the response ended or was cut off.

    Args:
        rewards: `[S, T]`, one per token, after every penalty.
        values: `[S, T]`, V(s_t) of the state in which token t was sampled.
        mask: `[S, T]` bool, true for the tokens of a sequence, which come first in its row.
        gamma: γ, the discount.
        lam: λ, which weights the later terms of the advantage.

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


def leave_one_out(rewards: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
    """Each response's reward minus the mean of its prompt's other responses (RLOO: Ahmadian et al. 2024, arXiv
    2402.14740, eq. 8).

    The baseline of a response does not depend on it, so the gradient of the expected reward is unbiased.

    Args:
        rewards: `[P, K]`, K responses to each of P prompts, after every penalty.

    Raises:
        ValueError: a prompt has fewer than two responses.
    """
    others = _responses_of_a_prompt(rewards) - 1
    return (rewards - rewards.mean(dim=1, keepdim=True)) * ((others + 1) / others)


def group_relative(rewards: Float[Tensor, "P K"], *, divide_by_std: bool) -> Float[Tensor, "P K"]:
    """Each response's reward minus the mean of all of its prompt's responses (GRPO: Shao et al. 2024, arXiv 2402.03300,
    section 4.1.2), divided by their standard deviation where `divide_by_std` says so.

    The mean contains the response itself, which shortens the expected gradient to (K − 1)/K of its length and leaves
    its direction. The division changes the direction: prompts whose rewards hardly differ count as much as those
    whose rewards differ widely, and so do prompts that are nearly solved or nearly hopeless (Liu et al. 2025, arXiv
    2503.20783, section 3.1, leave it out).

    Args:
        rewards: `[P, K]`, K responses to each of P prompts, after every penalty.
        divide_by_std: divide by the sample's standard deviation (K − 1 in its denominator) plus 1e-4, so that
            rewards that differ by rounding are not told apart.

    Raises:
        ValueError: a prompt has fewer than two responses.
    """
    _responses_of_a_prompt(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + 1e-4) if divide_by_std else centred


def _responses_of_a_prompt(rewards: Tensor) -> int:
    """K of `[P, K]`; raises ValueError below two."""
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards must have the shape [prompts, responses] with two responses to a prompt or more, got "
            f"{tuple(rewards.shape)}: one response has nothing to be compared with"
        )
    return rewards.shape[1]


def moments(values: Float[Tensor, "*N"], total: Callable[[Tensor], Tensor] = lambda sums: sums) -> tuple[float, float]:
    """Mean and standard deviation (of the population) of all `values`; `total` adds sums over processes."""
    wide = values.double().flatten()
    count, first = total(torch.stack([wide.new_tensor(wide.numel()), wide.sum()])).tolist()
    mean = first / max(count, 1.0)
    # Squares around the common mean, and not the mean of squares: that would lose the digits of values far from 0.
    square = float(total((wide - mean).square().sum()[None])[0])
    return mean, math.sqrt(square / max(count, 1.0))


def explained_variance(
    values: Float[Tensor, "*N"],
    returns: Float[Tensor, "*N"],
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> float:
    """1 − Var(returns − values)/Var(returns): 1 for a perfect critic, 0 for a constant one; 0 if nothing varies.

    `total` adds sums over processes.
    """
    _, spread = moments(returns, total)
    _, left = moments(returns.double() - values.double(), total)
    return 1.0 - (left / spread) ** 2 if spread > 0 else 0.0


# ---- losses ----


@dataclass(frozen=True)
class PolicyLoss:
    """`per_token` is to be minimised, `ratio` is π/π_old, `clipped` says where the clip decides; `[N]` each."""

    per_token: Float[Tensor, "*N"]
    ratio: Float[Tensor, "*N"]
    clipped: Bool[Tensor, "*N"]


def truncated_importance_weights(
    logp: Float[Tensor, "*N"], sampler_logp: Float[Tensor, "*N"], cap: float
) -> Float[Tensor, "*N"]:
    """min(π/μ, cap) of tokens that were drawn from μ and are learned from as if from π; no gradient passes.

    Truncated importance sampling (Ionides 2008, "Truncated Importance Sampling", J. Comput. Graph. Stat. 17(2)); for a
    policy whose inference engine rounds otherwise than its trainer: Yao et al. 2025, "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training". The cap bounds the variance, and biases by what lies above it.

    Args:
        logp: `[N]`, log π, nats.
        sampler_logp: `[N]`, log μ, nats.
        cap: above 0.
    """
    return (logp - sampler_logp).detach().exp().clamp(max=cap)


def clipped_policy_loss(
    logp: Float[Tensor, "*N"], old_logp: Float[Tensor, "*N"], advantages: Float[Tensor, "*N"], clip_range: float
) -> PolicyLoss:
    """PPO's clipped surrogate, negated: max(−A·ρ, −A·clip(ρ, 1 ± ε)) (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        logp: `[N]` log-probabilities of the sampled tokens, with gradient.
        old_logp: `[N]` the same under the policy that sampled them, constants.
        advantages: `[N]`, constants.
        clip_range: ε > 0.
    """
    ratio = (logp - old_logp).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return PolicyLoss(torch.maximum(unclipped, clipped), ratio.detach(), (clipped > unclipped).detach())


@dataclass(frozen=True)
class ValueLoss:
    """`per_token` is half a squared error, `clipped` says where the clip decides; `[N]` each."""

    per_token: Float[Tensor, "*N"]
    clipped: Bool[Tensor, "*N"]


def clipped_value_loss(
    values: Float[Tensor, "*N"], old_values: Float[Tensor, "*N"], returns: Float[Tensor, "*N"], clip_range: float | None
) -> ValueLoss:
    """½·max((V − R)², (clip(V, V_old ± ε) − R)²), `[N]` each; ½·(V − R)² where `clip_range` is None."""
    unclipped = 0.5 * (values - returns).square()
    if clip_range is None:
        return ValueLoss(unclipped, torch.zeros_like(unclipped, dtype=torch.bool))
    clipped = 0.5 * (torch.clamp(values, old_values - clip_range, old_values + clip_range) - returns).square()
    return ValueLoss(torch.maximum(unclipped, clipped), (clipped > unclipped).detach())


def kl_penalty(
    constraint: KLConstraint, policy_logp: Float[Tensor, "*N"], reference_logp: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """What is taken off each sampled token's reward, before the coefficient, `[N]` nats; 0 if the KL is in the loss.

    In a detached reward only k1 = log π − log π_ref has the gradient of the reverse KL.
    """
    if constraint.place == "loss":
        return torch.zeros_like(policy_logp)
    return sampled_kl(policy_logp, reference_logp, "k1")


def kl_loss(constraint: KLConstraint, stats: TokenStats, old_logp: Float[Tensor, " N"]) -> Float[Tensor, " N"] | None:
    """The KL term of the loss, before the coefficient, `[N]` nats with gradient; None if the KL is in the reward.

    Sampled: as a loss, k2 has the reverse KL's gradient and k3 the forward KL's. This holds for tokens that the policy
    samples itself; these were sampled by an older policy, so each is weighted with the ratio of the two. Exact: the KL
    over the vocabulary at each position, which needs no weight. In the loss a KL acts on its own position only; k1 in
    the reward also sees what a token does to the KL of later positions.
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
    """The coefficient of the KL: fixed, or adaptive after Ziegler et al. 2019.

    Adaptive: e = clip(KL/target − 1, ±0.2), coefficient ← coefficient·(1 + e·episodes/horizon), KL in nats per
    sequence, averaged over the episodes of one iteration.
    """

    LIMIT = 0.2

    def __init__(self, constraint: KLConstraint) -> None:
        self.constraint = constraint
        self.value = constraint.coefficient

    def update(self, kl: float, episodes: int) -> None:
        """Adapt the coefficient to one iteration: `kl` is the mean per sequence, in nats, over `episodes` sequences.

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
        """Add a batch, given by its size, mean and standard deviation."""
        total = self.count + count
        gap = mean - self.mean
        self.square += std**2 * count + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    def apply(self, rewards: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """`[S]` rewards, normalised; their spread is unchanged as long as no reward has differed from another."""
        std = math.sqrt(self.square / self.count) if self.count else 0.0
        return (rewards - self.mean) / (std if std > 0 else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.square = (float(state[name]) for name in ("count", "mean", "square"))
