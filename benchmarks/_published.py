"""The computation as it is usually published (arXiv 2404.11999 and its descendants): the peer of every benchmark."""

from __future__ import annotations

import torch
from torch import Tensor

from tdpo import TokenStats


def published_statistics(policy_logits: Tensor, reference_logits: Tensor, targets: Tensor) -> TokenStats:
    """Compute statistics `[...]` from full logits `[..., V]`: softmax and *its* logarithm, log_softmax, one sum."""
    logp = policy_logits.log_softmax(-1)
    reference_p = reference_logits.softmax(-1)
    reference_logp = reference_p.log()
    forward_kl = (reference_p * (reference_logp - logp)).sum(-1)
    index = targets[..., None]
    return TokenStats(logp.gather(-1, index)[..., 0], reference_logp.gather(-1, index)[..., 0], forward_kl)


def upcast(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32, as published code does before any softmax."""
    return logits if logits.dtype == torch.float64 else logits.float()


def statistics_from_hidden(
    hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor, targets: Tensor
) -> TokenStats:
    """Compute `published_statistics` from hidden states and both models' heads, the reference without gradient.

    Both logits stay alive while the statistics are computed and go before the backward pass, as they do where a
    training step calls a function of the two.
    """
    policy_logits = upcast(hidden @ weight.T)
    with torch.no_grad():
        reference_logits = upcast(reference_hidden @ reference_weight.T)
    return published_statistics(policy_logits, reference_logits, targets)
