"""The mean Jensen–Shannon divergence of weight 0.5, which GKD learns from: published, by TRL, and in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from _harness import Unavailable
from _published import upcast
from tdpo import Head, linear_token_stats
from tdpo.token_statistics import JensenShannon

WEIGHT = 0.5
# Hidden states and head of the policy, then of the reference: the mean over tokens, with its gradient.
MeanDivergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def published(hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor) -> Tensor:
    """From full logits, as GKD is usually written (TRL's `generalized_jsd_loss`)."""
    policy = upcast(hidden @ weight.T).log_softmax(-1)
    with torch.no_grad():
        reference = upcast(reference_hidden @ reference_weight.T).log_softmax(-1)
    mixture = torch.logsumexp(torch.stack([policy + math.log(1 - WEIGHT), reference + math.log(WEIGHT)]), dim=0)
    of_reference = torch.nn.functional.kl_div(mixture, reference, reduction="none", log_target=True)
    of_policy = torch.nn.functional.kl_div(mixture, policy, reduction="none", log_target=True)
    return (WEIGHT * of_reference + (1 - WEIGHT) * of_policy).sum(-1).mean()


def tiled(hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor) -> Tensor:
    targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    stats: Any = linear_token_stats(
        hidden, Head(weight), reference_hidden, Head(reference_weight), targets, extras=[JensenShannon(WEIGHT)]
    )
    mean: Tensor = stats.jensen_shannon.mean()
    return mean


def trl_chunked() -> MeanDivergence:
    """TRL's DistillationTrainer."""
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        raise Unavailable(f"TRL with chunked functions is not installed: {error}") from error

    def mean(hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor) -> Tensor:
        policy, reference = (hidden, weight, None), (reference_hidden, reference_weight, None)
        value: Tensor = ChunkedDivergenceFunction.apply(*policy, *reference, WEIGHT)[0].mean()
        return value

    return mean
