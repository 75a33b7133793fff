"""One frozen head shared by policy and reference: the reference as D + 2 numbers a token.

For logits z = s·(W·h + b), log Z(h) = logsumexp(z) is convex in h with gradient E_p[s·W], and

    KL(q‖p) = logZ(h) − logZ(h_ref) − e·(h − h_ref),   e = E_q[s·W]

is its Bregman divergence. With the bias the same holds, E_q[s·b] cancelling between the two logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._tiled_head import Accumulator, tile_bounds, tile_logits, wide_product

if TYPE_CHECKING:
    from .token_statistics import Head


def walk(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """One walk over the tiles: log Z `[N]` float64 and E[s·W] `[N, D]` float32 or float64."""
    tokens = hidden.shape[0]
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    expected = hidden.new_zeros(hidden.shape, dtype=wide)
    sums = Accumulator.start(tokens, expected)
    for start, end in tile_bounds(tokens, head.weight.shape[0]):
        z = tile_logits(hidden, head, start, end)
        shrink = sums.raise_maximum(z)
        # The weights stay wide: rounded to bf16 they would put first-order errors into a second-order KL.
        weights = sums.exponentials(z)
        expected.mul_(shrink[:, None]).add_(wide_product(weights, head.weight[start:end]))
    expected.mul_(head.scale).div_(sums.total[:, None])
    return sums.log_z(), expected


def target_logits(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The logit of each token's own entry, `[N]` float64, without a matrix product."""
    z = (hidden.double() * head.weight[targets].double()).sum(dim=1)
    if head.bias is not None:
        z = z + head.bias[targets].double()
    return z * head.scale


def summarize(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """expected_weight `[N, D]`, offset `[N]` float64, reference_logp `[N]`; see ReferenceSummary."""
    with torch.autocast(hidden.device.type, enabled=False):
        log_z, expected = walk(hidden, head)
    # From the *stored* e, so that its rounding multiplies h − h_ref only.
    offset = (expected.double() * hidden.double()).sum(dim=1) - log_z
    reference_logp = target_logits(hidden, head, targets) - log_z
    return expected, offset, reference_logp.to(expected.dtype)


def policy_statistics(
    hidden: Tensor, head: Head, expected_reference: Tensor, offset: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """policy_logp and forward_kl, `[N]` each, differentiable in `hidden`."""
    with torch.autocast(hidden.device.type, enabled=False):
        return _FrozenHeadStats.apply(hidden, head, expected_reference, offset, targets)


class _FrozenHeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, expected_reference: Tensor, offset: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_z, expected = walk(hidden, head)
        ctx.head = head
        ctx.save_for_backward(expected, expected_reference, targets)
        ctx.hidden_dtype = hidden.dtype
        logp = target_logits(hidden, head, targets) - log_z
        kl = log_z + offset - (expected_reference.double() * hidden.double()).sum(dim=1)
        return logp.to(expected.dtype), kl.to(expected.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_logp, d_kl = upstream
        expected, expected_reference, targets = ctx.saved_tensors
        own = ctx.head.weight[targets].to(expected.dtype) * ctx.head.scale
        d_hidden = d_logp[:, None] * (own - expected) + d_kl[:, None] * (expected - expected_reference)
        return d_hidden.to(ctx.hidden_dtype), None, None, None, None
