"""The tiled head path: `linear_token_stats` without [N, V]. Both passes walk the vocabulary in tiles.

With logits z and the policy's and reference's distributions p and q, the gradient of every statistic
with respect to z is a combination of p, q and onehot that is known once the forward pass has left
log Z behind (nats, float64 accumulators):

    ∇ log p(y)   = onehot(y) − p
    ∇ KL(q‖p)    = p − q
    ∇ KL(p‖q)    = p·(log p − log q − KL(p‖q))
    ∇ H(p)       = −p·(log p + H(p))
    ∇ JS         = (1 − w)·p·(log p − log m − KL(p‖m))      (`tiled_mixture.py`)

The backward pass recomputes a tile of logits, turns it into its gradient in place and contracts it at
once. It skips the head's gradient when the head is frozen, and the reference's logits for tokens
whose KL has no gradient: under TDPO2 that is every chosen token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tiled_backward import BackwardWalk
from .tiled_forward import ForwardWalk, Plan
from .types import Extra, Head, LearnedTokens, MixtureTokenStats, TokenStats, mixture_of


def linear_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`linear_token_stats` on arguments that were checked."""
    plan = Plan.of(policy_head, reference_head, extras, learned)
    with torch.autocast(policy_hidden.device.type, enabled=False):
        policy_logp, reference_logp, forward_kl, reverse_kl, entropy, jensen_shannon = _TiledTokenStats.apply(
            policy_hidden, policy_head.weight, policy_head.bias, reference_hidden.detach(), targets, plan
        )
    stats = TokenStats(
        policy_logp,
        reference_logp,
        forward_kl,
        reverse_kl if "reverse_kl" in extras else None,
        entropy if "policy_entropy" in extras else None,
    )
    if mixture_of(extras) is None:
        return stats
    return MixtureTokenStats(**vars(stats), jensen_shannon=jensen_shannon)


class _TiledTokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reference_hidden: Tensor,
        targets: Tensor,
        plan: Plan,
    ) -> tuple[Tensor, ...]:
        sums = ForwardWalk(hidden, reference_hidden, targets, plan).run()
        out = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(
            hidden, weight, bias, reference_hidden, targets, sums.policy_log_z, sums.reference_log_z,
            sums.reverse_kl, sums.entropy, sums.policy_to_mixture,
        )  # fmt: skip
        ctx.plan = plan
        ctx.set_materialize_grads(False)  # None says of a statistic that nothing is learned from it
        reference_logp = sums.reference_logp.to(out)
        ctx.mark_non_differentiable(reference_logp)
        return (
            sums.policy_logp.to(out),
            reference_logp,
            sums.forward_kl.to(out),
            sums.reverse_kl.to(out),
            sums.entropy.to(out),
            sums.jensen_shannon.to(out),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Weight and bias are saved only for autograd's check that nothing changed them in place since.
        hidden, _weight, _bias, reference_hidden, targets, *saved = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        d_logp, _, *d_others = upstream
        walk = BackwardWalk(hidden, reference_hidden, targets, ctx.plan, saved, (d_logp, *d_others))
        with torch.autocast(hidden.device.type, enabled=False):
            grads = walk.run(needs_hidden, needs_weight, needs_bias)
        return (*grads, None, None, None)
