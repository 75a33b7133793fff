"""Plain DPO on a GPU: by the head's own kernels, and by other projects where they are installed. Not run yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from _harness import Unavailable
from tdpo import Head

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def frozen_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log π(target) `[N]` of a frozen head by TDPO's own kernels, without what a KL needs."""
    logp: Tensor = _FrozenLogp.apply(hidden, weight, targets)
    return logp


class _FrozenLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        from tdpo.token_statistics.cuda import frozen_walk, products, rows

        head, nothing = Head(weight), targets.new_empty(len(targets), 0)
        unknown = hidden.new_full((len(hidden),), products.NO_SHIFT, dtype=torch.float32)
        walked = frozen_walk.walk(hidden, head, nothing, unknown, pair=False)
        ctx.save_for_backward(walked.expected_weight, weight, targets)
        return (rows.exact_logits(hidden, head, targets[:, None])[:, 0] - walked.log_z).float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, weight, targets = ctx.saved_tensors
        own = weight[targets].float().sub_(expected)
        return own.mul_(upstream[0][:, None]).to(weight.dtype), None, None


def liger_dpo(pairs: int, beta: float) -> Loss:
    """Liger's fused linear DPO with its reference computed in the same call; all responses of one length."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss
    except ImportError as error:
        raise Unavailable(f"liger-kernel is not installed: {error}") from error
    function = LigerFusedLinearDPOLoss(beta=beta, compute_nll_loss=False, use_ref_model=True)

    def loss(hidden: Tensor, weight: Tensor, reference: Tensor, reference_weight: Tensor, targets: Tensor) -> Tensor:
        def by_response(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (2 * pairs, -1))  # the chosen first, as Liger takes them

        value: Tensor = function(
            weight, by_response(hidden), by_response(targets),
            ref_input=by_response(reference), ref_weight=reference_weight,
        )[0]  # fmt: skip
        return value

    return loss


def cut_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Log-probabilities `[N]` of the targets by cut-cross-entropy, whose product is fused into the kernel."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"cut-cross-entropy is not installed: {error}") from error

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        nats: Tensor = linear_cross_entropy(hidden, weight, targets, reduction="none")
        return -nats.float()

    return logp
