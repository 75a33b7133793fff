"""The gradient of the reverse KL where both models share one frozen head: a walk of its own, in the backward pass.

With p the policy's distribution and δ = h − h_ref,

    ∇ KL(p‖q) = Cov_p[s·W, s·W·δ] = E_p[s·W·(s·W·δ)] − E_p[s·W]·E_p[s·W·δ].

No summary of the reference has this covariance, since it is taken under the policy; so the vocabulary is walked once
more. The walk makes three products (logits, s·W·δ, and the sum over W), where the forward pass makes two, and it goes
over the tokens alone that it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .products import Workspace, add_wide_product, wide_product
from .tiles import tile_bounds, tile_logits
from .types import Head


def reverse_kl_gradient(
    hidden: Tensor,
    reference_hidden: Tensor,
    head: Head,
    log_z: Tensor,
    expected: Tensor,
    expected_reference: Tensor,
    upstream: Tensor,
) -> Tensor:
    """Σ upstream·∇KL(p‖q) with respect to the policy's hidden states, `[N, D]` in the dtype of `expected`.

    Args:
        hidden, reference_hidden: `[N, D]`, h and h_ref.
        head: the shared head.
        log_z: `[N]` float64, log Z(h).
        expected, expected_reference: `[N, D]`, E_p[s·W] and E_q[s·W].
        upstream: `[N]`, the gradient of the loss with respect to each reverse KL.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        covariance = _covariance(hidden, reference_hidden, head, log_z, expected, expected_reference)
    return covariance.mul_(upstream[:, None])


def _covariance(
    hidden: Tensor, reference_hidden: Tensor, head: Head, log_z: Tensor, expected: Tensor, expected_reference: Tensor
) -> Tensor:
    """Cov_p[s·W, s·W·δ] of each token, `[n, D]`."""
    wide, work = expected.dtype, Workspace()
    step = hidden.to(wide) - reference_hidden.to(wide)
    # Near E_p[s·W·δ] while the two models are near, so that what is summed is as small as the covariance itself.
    centre = (expected_reference * step).sum(dim=1)
    weighted, mean = torch.zeros_like(expected), torch.zeros_like(centre)
    for start, end in tile_bounds(len(hidden), head.weight.shape[0]):
        p = tile_logits(hidden, head, start, end, work).sub_(log_z.to(wide)[:, None]).exp_()
        gap = wide_product(step, head.weight[start:end].T, work, "gap")
        if head.scale != 1.0:
            gap.mul_(head.scale)
        gap.sub_(centre[:, None]).mul_(p)
        mean += gap.sum(dim=1)
        add_wide_product(weighted, gap, head.weight[start:end], work)
    return weighted.mul_(head.scale).sub_(mean[:, None] * expected)
