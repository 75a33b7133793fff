"""The gradient of the reverse KL where both models share one frozen head, on a GPU.

`frozen_reverse.py` of the parent room sums over the vocabulary what the summary lacks. Here the any-head path's
backward walk does: the summary gives log Z(h_ref), and with it ∇ KL(p‖q) is known of every tile of both models' logits.
It makes three products, as many as the plain walk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Head
from . import products
from .tiled_backward import BackwardWalk
from .tiled_forward import Plan


def reverse_kl_gradient(
    hidden: Tensor,
    reference_hidden: Tensor,
    head: Head,
    targets: Tensor,
    log_z: Tensor,
    reference_log_z: Tensor,
    reverse_kl: Tensor,
    upstream: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Σ upstream·∇KL(p‖q) with respect to the policy's hidden states, `[N, D]` float32.

    Args:
        hidden, reference_hidden: `[N, D]`, h and h_ref.
        head: the shared head.
        targets: `[N]`.
        log_z, reference_log_z, reverse_kl: `[N]` float64, as the forward pass left them.
        upstream: `[N]`, the gradient of the loss with respect to each reverse KL.
        dtype: of the products' operands.
    """
    scales = torch.stack([*_at_a_scale(log_z), *_at_a_scale(reference_log_z)], dim=1)
    nothing = torch.zeros_like(reverse_kl)
    saved = [scales, reverse_kl, nothing, nothing]
    plan = Plan(head, head, frozenset(["reverse_kl"]), {}, dtype, dtype)
    # The walk returns the dtype of the hidden states, which it multiplies in that of the plan.
    walk = BackwardWalk(hidden.float(), reference_hidden, targets, plan, saved, (None, None, upstream, None, None))
    gradient, _, _ = walk.run(True, False, False)
    assert gradient is not None
    return gradient


def _at_a_scale(log_z: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, total) with log Z = log(total) + shift·ln 2 and a whole shift, as the passes take it."""
    shift = (log_z / products.LN2).round()
    return shift, (log_z - shift * products.LN2).exp()
