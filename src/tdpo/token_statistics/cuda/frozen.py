"""The frozen head's operations on a GPU: `frozen.py` of this room in wide tiles (`frozen_walk.py`).

A row's scale starts at the policy's own logit of the reference's likeliest token, which the summary names. The gradient
of the reverse KL takes another walk, in the backward pass (`frozen_reverse.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..learned_tokens import tokens_with_gradient
from ..types import Extra, Head, LearnedTokens, ReferenceSummary, TokenStats
from . import products
from .choice import operand_dtype
from .frozen_reverse import reverse_kl_gradient
from .frozen_walk import Walked, walk
from .rows import exact_logits, row_dot

# Nats below which a difference of float64 numbers of the size of log Z says nothing.
RESOLUTION = 1e-12


def summarize(hidden: Tensor, head: Head, targets: Tensor) -> ReferenceSummary:
    """`summarize_reference`: one walk, with the weights as pairs."""
    operand = hidden.to(operand_dtype(hidden, head.weight)).contiguous()
    with torch.autocast(hidden.device.type, enabled=False):
        unknown = operand.new_full((len(operand),), products.NO_SHIFT, dtype=torch.float32)
        walked = walk(operand, head, None, unknown, pair=True)
        offset = row_dot(walked.expected_weight, operand) - walked.log_z
        reference_logp = exact_logits(operand, head, targets[:, None])[:, 0] - walked.log_z
    return ReferenceSummary(walked.expected_weight, offset, reference_logp.float(), walked.likeliest, hidden)


def statistics(
    hidden: Tensor,
    head: Head,
    summary: ReferenceSummary,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`frozen_head_token_stats`: one walk; the entropy is detached, and extras that were not asked for are None."""
    dtype = operand_dtype(hidden, head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        logp, kl, reverse_kl, entropy = _FrozenHeadStats.apply(hidden, head, summary, targets, extras, learned, dtype)
    return TokenStats(
        logp,
        summary.reference_logp,
        kl,
        reverse_kl if "reverse_kl" in extras else None,
        entropy if "policy_entropy" in extras else None,
    )


class _FrozenHeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        summary: ReferenceSummary,
        targets: Tensor,
        extras: frozenset[Extra],
        learned: LearnedTokens,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        operand = hidden.to(dtype).contiguous()
        own, shift = _named_logits(operand, head, summary.likeliest, targets)
        walked = walk(operand, head, _likeliest(summary, targets), shift, pair="reverse_kl" in extras)
        ctx.head, ctx.learned, ctx.operand_dtype, ctx.hidden_dtype = head, learned, dtype, hidden.dtype
        ctx.set_materialize_grads(False)  # a reverse KL that is only measured must cost nothing here
        kl = walked.log_z + summary.offset - row_dot(summary.expected_weight, operand)
        kl = torch.where(kl.abs() < RESOLUTION, 0.0, kl)
        reverse_kl, of_reverse = torch.zeros_like(kl), tuple[Tensor | None, ...]()
        if "reverse_kl" in extras:
            reverse_kl, reference_log_z = _reverse_kl(operand, walked, summary)
            of_reverse = hidden, summary.hidden, walked.log_z, reference_log_z, reverse_kl
        ctx.save_for_backward(walked.expected_weight, summary.expected_weight, targets, *of_reverse)
        out = [value.float() for value in (own - walked.log_z, kl, reverse_kl, walked.entropy)]
        ctx.mark_non_differentiable(*(out[3:] if "reverse_kl" in extras else out[2:]))
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, expected_reference, targets, *of_reverse = ctx.saved_tensors
        nothing = torch.zeros_like(expected[:, 0])
        d_logp, d_kl = (nothing if gradient is None else gradient for gradient in upstream[:2])
        own = ctx.head.weight[targets].to(ctx.operand_dtype).float().mul_(ctx.head.scale).sub_(expected)
        d_hidden = (expected - expected_reference).mul_(d_kl[:, None]).addcmul_(own, d_logp[:, None])
        if tokens := tokens_with_gradient(ctx.learned, {"reverse_kl": upstream[2]}, len(expected)):
            rows = slice(tokens.start, tokens.stop)
            hidden, reference_hidden, log_z, reference_log_z, reverse_kl, own_targets, gradient = (
                each[rows] for each in (*of_reverse, targets, upstream[2])
            )
            d_hidden[rows] += reverse_kl_gradient(
                hidden, reference_hidden, ctx.head, own_targets, log_z, reference_log_z, reverse_kl, gradient,
                ctx.operand_dtype,
            )  # fmt: skip
        return d_hidden.to(ctx.hidden_dtype), None, None, None, None, None, None


def _likeliest(summary: ReferenceSummary, targets: Tensor) -> Tensor:
    return targets.new_empty(len(targets), 0) if summary.likeliest is None else summary.likeliest


def _named_logits(hidden: Tensor, head: Head, likeliest: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' logits `[N]` float64, and the rows' first scales `[N]`: the logit of the reference's likeliest."""
    if likeliest is None or not likeliest.shape[1]:
        unknown = hidden.new_full((len(hidden),), products.NO_SHIFT, dtype=torch.float32)
        return exact_logits(hidden, head, targets[:, None])[:, 0], unknown
    named = exact_logits(hidden, head, torch.stack([targets.int(), likeliest[:, 0].int()], dim=1))
    power = (named[:, 1] / products.LN2).round()
    nothing = {"nan": products.NO_SHIFT, "posinf": products.NO_SHIFT, "neginf": products.NO_SHIFT}
    return named[:, 0].contiguous(), power.nan_to_num(**nothing).float()


def _reverse_kl(hidden: Tensor, walked: Walked, summary: ReferenceSummary) -> tuple[Tensor, Tensor]:
    """KL(p‖q) = logZ(h_ref) − logZ(h) + E_p[s·W]·(h − h_ref), the roles exchanged; and logZ(h_ref). `[N]` each."""
    assert summary.hidden is not None
    reference = summary.hidden.to(hidden.dtype)
    log_z_ref = row_dot(summary.expected_weight, reference) - summary.offset
    step = row_dot(walked.expected_weight, hidden) - row_dot(walked.expected_weight, reference)
    return log_z_ref - walked.log_z + step, log_z_ref
