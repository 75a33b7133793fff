"""Statistics from full logits `[N, V]`: the definition, and the oracle of the other implementations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from ..divergences import jensen_shannon_of_logp, kl_of_logp, log_softmax, weighted_log_gap
from .types import Extra, Head, LearnedTokens, MixtureTokenStats, TokenStats, mixture_of


def statistics_of_logits(
    policy_logits: Tensor, reference_logits: Tensor, targets: Tensor, extras: Collection[Extra]
) -> TokenStats:
    """`token_stats` on arguments that were checked."""
    policy = log_softmax(policy_logits)
    reference = log_softmax(reference_logits.detach())
    index = targets[:, None]
    stats = TokenStats(
        policy_logp=policy.gather(1, index)[:, 0],
        reference_logp=reference.gather(1, index)[:, 0],
        forward_kl=kl_of_logp(reference, policy),
        reverse_kl=kl_of_logp(policy, reference) if "reverse_kl" in extras else None,
        policy_entropy=_entropy(policy) if "policy_entropy" in extras else None,
    )
    mixture = mixture_of(extras)
    if mixture is None:
        return stats
    return MixtureTokenStats(**vars(stats), jensen_shannon=jensen_shannon_of_logp(policy, reference, mixture.weight))


def _entropy(logp: Tensor) -> Tensor:
    return -weighted_log_gap(logp, logp, torch.zeros_like(logp))


def linear_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
    _learned: LearnedTokens,
) -> TokenStats:
    """`linear_token_stats` on full logits, in float64 throughout where the device has it: an oracle must not round."""
    result = torch.float64 if policy_hidden.dtype == torch.float64 else torch.float32
    wide = torch.float32 if policy_hidden.device.type == "mps" else torch.float64
    with torch.no_grad():
        reference_logits = reference_head.logits(reference_hidden.to(wide))
    stats = statistics_of_logits(policy_head.logits(policy_hidden.to(wide)), reference_logits, targets, extras)
    return replace(stats, **{name: value.to(result) for name, value in vars(stats).items() if value is not None})
