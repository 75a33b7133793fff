"""What PPO minimises on the tokens of a micro-batch, and what the head has to compute for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...policy_gradient import PolicyLoss, ValueLoss, clipped_policy_loss, clipped_value_loss, kl_loss
from ...scoring.options import HeadImpl
from ...token_statistics import Extra, TokenStats
from .config import PPOConfig


def head_impl(args: PPOConfig) -> HeadImpl:
    """How token statistics are computed: a loss on the reverse KL or the entropy takes the tiled path, as the frozen
    one has no gradient of the entropy."""
    return "tiled" if loss_extras(args) else "auto"


def loss_extras(args: PPOConfig) -> tuple[Extra, ...]:
    """The statistics beside the usual ones that the loss, or what moves its KL's coefficient, needs of every update."""
    extras: list[Extra] = []
    constraint = args.constraint
    in_loss = constraint.place == "loss"
    is_minimised = in_loss and constraint.form == "exact" and constraint.direction == "reverse"
    is_held = in_loss and constraint.controller == "dual" and constraint.held_direction == "reverse"
    if is_minimised or is_held:
        extras.append("reverse_kl")
    if args.entropy_coefficient > 0:
        extras.append("policy_entropy")
    return tuple(extras)


@dataclass(frozen=True)
class RolloutTokens:
    """What an update needs of N tokens of a rollout, constants, `[N]` each.

    Args:
        old_logp: of the policy that sampled.
        advantages: of the tokens.
        old_values, returns: of the critic while sampling, and what it should have said; None without a critic.
        importance_weights: of the policy's loss, where another distribution than `old_logp` was drawn from; None: 1.
    """

    old_logp: Tensor
    advantages: Tensor
    old_values: Tensor | None = None
    returns: Tensor | None = None
    importance_weights: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """`per_token` `[N]` is minimised: the policy's loss with the weighted value loss (None without a critic), KL and
    entropy."""

    per_token: Tensor
    policy: PolicyLoss
    value: ValueLoss | None


def objective(
    args: PPOConfig, stats: TokenStats, values: Tensor | None, sampled: RolloutTokens, kl_weight: float
) -> Objective:
    """The objective of N response tokens.

    Args:
        stats: of the policy that learns, with the gradient.
        values: `[N]`, of the critic, with the gradient; None without a critic.
        sampled: the same tokens of the rollout.
        kl_weight: of a KL in the loss, per nat.
    """
    policy = clipped_policy_loss(stats.policy_logp, sampled.old_logp, sampled.advantages, args.clip_range)
    weights = sampled.importance_weights
    per_token, value = policy.per_token if weights is None else weights * policy.per_token, None
    if values is not None:
        assert sampled.old_values is not None and sampled.returns is not None
        value = clipped_value_loss(values, sampled.old_values, sampled.returns, args.value_clip_range)
        per_token = per_token + args.value_coefficient * value.per_token
    constraint = kl_loss(args.constraint, stats, sampled.old_logp)
    if constraint is not None:
        per_token = per_token + kl_weight * constraint
    if stats.policy_entropy is not None:
        per_token = per_token - args.entropy_coefficient * stats.policy_entropy
    return Objective(per_token, policy, value)
