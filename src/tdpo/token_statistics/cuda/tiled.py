"""`linear_token_stats` on a GPU, for any two heads: `tiled.py` of this room in wide tiles.

Forward, a tile is two products and one pass; backward, it is recomputed, turned into its gradient by one pass, and
contracted by one product with the head and one with the hidden states. The formulas are those of `tiled.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..types import Extra, Head, LearnedTokens, MixtureTokenStats, TokenStats, mixture_of
from .choice import operand_dtype
from .tiled_backward import BackwardWalk
from .tiled_forward import Plan, walk_forward


def linear_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`linear_token_stats`, in tiles both ways."""
    dtypes = operand_dtype(policy_hidden, policy_head.weight), operand_dtype(reference_hidden, reference_head.weight)
    plan = Plan(policy_head, reference_head, extras, learned, *dtypes)
    with torch.autocast(policy_hidden.device.type, enabled=False):
        outputs = _TiledTokenStats.apply(
            policy_hidden, policy_head.weight, policy_head.bias, reference_hidden.detach(), targets, plan
        )
    policy_logp, reference_logp, forward_kl, reverse_kl, entropy, jensen_shannon = outputs
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
        sums = walk_forward(hidden, reference_hidden, targets, plan)
        ctx.save_for_backward(
            hidden, weight, bias, reference_hidden, targets, sums.table, sums.reverse_kl, sums.entropy,
            sums["policy_to_mixture"],
        )  # fmt: skip
        ctx.plan = plan
        ctx.set_materialize_grads(False)  # None says of a statistic that nothing is learned from it
        statistics = (
            sums.policy_logp, sums.reference_logp, sums.forward_kl, sums.reverse_kl, sums.entropy,
            sums["jensen_shannon"],
        )  # fmt: skip
        out = [value.float() for value in statistics]
        ctx.mark_non_differentiable(out[1])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Weight and bias are saved only for autograd's check that nothing changed them in place since.
        hidden, _weight, _bias, reference_hidden, targets, *saved = ctx.saved_tensors
        d_logp, _, *d_others = upstream
        with torch.autocast(hidden.device.type, enabled=False):
            walk = BackwardWalk(hidden, reference_hidden, targets, ctx.plan, saved, (d_logp, *d_others))
            grads = walk.run(*ctx.needs_input_grad[:3])
        return (*grads, None, None, None)
