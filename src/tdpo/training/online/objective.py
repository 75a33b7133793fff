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
    """The statistics beside the usual ones that the loss needs with their gradients."""
    extras: list[Extra] = []
    constraint = args.constraint
    if constraint.place == "loss" and constraint.form == "exact" and constraint.direction == "reverse":
        extras.append("reverse_kl")
    if args.entropy_coefficient > 0:
        extras.append("policy_entropy")
    return tuple(extras)


@dataclass(frozen=True)
class Objective:
    """`per_token` `[N]` is minimised: the policy's loss with the weighted value loss, KL and entropy."""

    per_token: Tensor
    policy: PolicyLoss
    value: ValueLoss


def objective(
    args: PPOConfig,
    stats: TokenStats,
    values: Tensor,
    *,
    old_logp: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    kl_weight: float,
) -> Objective:
    """The objective of N response tokens.

    Args:
        stats: of the policy that learns, with the gradient.
        values: `[N]`, of the critic, with the gradient.
        old_logp, old_values: `[N]`, of the policy and the critic that sampled.
        advantages, returns: `[N]`.
        kl_weight: of a KL in the loss, per nat.
    """
    policy = clipped_policy_loss(stats.policy_logp, old_logp, advantages, args.clip_range)
    value = clipped_value_loss(values, old_values, returns, args.value_clip_range)
    per_token = policy.per_token + args.value_coefficient * value.per_token
    constraint = kl_loss(args.constraint, stats, old_logp)
    if constraint is not None:
        per_token = per_token + kl_weight * constraint
    if stats.policy_entropy is not None:
        per_token = per_token - args.entropy_coefficient * stats.policy_entropy
    return Objective(per_token, policy, value)
