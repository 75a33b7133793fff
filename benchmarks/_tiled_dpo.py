"""What plain DPO costs in the very tiling that TDPO's head uses here: log-probabilities only, no reference, no KL.

The reference's log-probabilities are precomputed, as DPO trainers offer. Both functions take tdpo's own tiles and
matrix products, so that what separates them from TDPO's is the KL and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdpo import Head
from tdpo.token_statistics.frozen import own_logits, walk
from tdpo.token_statistics.products import Workspace, add_wide_product, narrow_product
from tdpo.token_statistics.tiles import Accumulator, tile_bounds, tile_logits


def tiled_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log π(target) `[N]`, with gradients to the hidden states and, where it requires one, to the head."""
    function = _TrainedHeadLogp if weight.requires_grad else _FrozenHeadLogp
    return function.apply(hidden, weight, targets)


class _FrozenHeadLogp(torch.autograd.Function):
    """One walk gathers log Z and E[W], so that the backward pass does nothing of the vocabulary's size."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        head = Head(weight)
        # TDPO's own walk; only its correction of the likeliest logits, which a KL needs and DPO does not, is left out.
        walked = walk(hidden, head, likeliest=targets.new_empty(len(targets), 0))
        log_z, expected = walked.log_z, walked.expected_weight
        ctx.save_for_backward(expected, weight, targets)
        ctx.hidden_dtype = hidden.dtype
        return (own_logits(hidden, head, targets) - log_z).to(expected.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, weight, targets = ctx.saved_tensors
        d_hidden = upstream[0][:, None] * (weight[targets].to(expected.dtype) - expected)
        return d_hidden.to(ctx.hidden_dtype), None, None


class _TrainedHeadLogp(torch.autograd.Function):
    """Two walks: log Z; then each tile again, turned into its gradient in place and contracted at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        head, wide = Head(weight), torch.float64 if hidden.dtype == torch.float64 else torch.float32
        sums, work = Accumulator.start(len(hidden), hidden.new_empty(0, dtype=wide)), Workspace()
        for start, end in tile_bounds(*_shape(hidden, weight)):
            z = tile_logits(hidden, head, start, end, work)
            sums.raise_maximum(z)
            sums.exponentials(z)
        log_z = sums.log_z()
        ctx.save_for_backward(hidden, weight, targets, log_z)
        return (own_logits(hidden, head, targets) - log_z).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        [d_logp] = upstream
        head, work = Head(weight), Workspace()
        d_hidden, d_weight = torch.zeros_like(hidden, dtype=d_logp.dtype), torch.empty_like(weight)
        for start, end in tile_bounds(*_shape(hidden, weight)):
            z = tile_logits(hidden, head, start, end, work)
            dz = z.sub_(log_z.to(z.dtype)[:, None]).exp_().mul_(-d_logp[:, None])
            inside, column = (targets >= start) & (targets < end), (targets - start).clamp(0, end - start - 1)
            dz.scatter_add_(1, column[:, None], torch.where(inside, d_logp, 0.0)[:, None])
            operand = work.converted("operand", dz, weight.dtype)
            add_wide_product(d_hidden, operand, weight[start:end], work)
            narrow_product(operand.T, hidden, out=d_weight[start:end])
        return d_hidden.to(hidden.dtype), d_weight, None


def _shape(hidden: Tensor, weight: Tensor) -> tuple[int, int]:
    return len(hidden), len(weight)
