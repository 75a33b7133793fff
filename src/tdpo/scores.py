"""Scores of pairs from the statistics of their tokens: log-ratios, sequence KLs and log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .token_statistics import TokenStats, index_range

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


@dataclass(frozen=True)
class PairScores:
    """What the losses need to know of P pairs; `[P]` each, in nats per sequence.

    `*_log_ratio` is log π(y|x) − log π_ref(y|x); `*_sequence_kl` is D(x, y) = Σ_t KL(π_ref‖π) over the
    response's positions (arXiv 2404.11999, eq. 8). `*_logp` is log π(y|x), and `*_tokens` counts the tokens that it is
    the sum of; `score_pairs` gives both, and scores made by hand may lack them: of the losses, only SimPO asks.
    """

    chosen_log_ratio: Float[Tensor, " P"]
    rejected_log_ratio: Float[Tensor, " P"]
    chosen_sequence_kl: Float[Tensor, " P"]
    rejected_sequence_kl: Float[Tensor, " P"]
    chosen_logp: Float[Tensor, " P"] | None = None
    rejected_logp: Float[Tensor, " P"] | None = None
    chosen_tokens: Int64[Tensor, " P"] | None = None
    rejected_tokens: Int64[Tensor, " P"] | None = None


def detached(scores: PairScores) -> PairScores:
    """The same scores without their gradients, which hold the memory of a whole forward."""
    return PairScores(*(None if value is None else value.detach() for value in vars(scores).values()))  # type: ignore[arg-type]


def sum_by_sequence(
    values: Float[Tensor, " N"], sequence_index: Int64[Tensor, " N"], num_pairs: int
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Sum per-token values `[N]` into sequences: (chosen `[P]`, rejected `[P]`); an empty response sums to 0."""
    # A GPU adds in any order. Of a float64 sum rounding leaves the same float32, which the kernels' statistics deserve.
    wide = values.double() if values.is_cuda else values
    totals = wide.new_zeros(2 * num_pairs).index_add(0, sequence_index, wide).to(values.dtype)
    return totals[:num_pairs], totals[num_pairs:]


def mean_over_tokens(totals: Float[Tensor, " P"], tokens: Int64[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Means over the tokens of responses `[P]`, from sums over them; an empty response gives 0, as its sum does."""
    return totals / tokens.clamp(min=1)


def score_pairs(stats: TokenStats, sequence_index: Int64[Tensor, " N"], num_pairs: int) -> PairScores:
    """Sum token statistics into pair scores.

    Args:
        stats: `[N]` fields over the flat response tokens.
        sequence_index: `[N]` int64 in [0, 2P): p for the chosen response of pair p, P + p for its rejected one.
        num_pairs: P.

    Returns:
        PairScores, `[P]` each; a response without a counted token scores 0, never NaN.

    Raises:
        ValueError: the shapes disagree or an index lies outside [0, 2P).
    """
    if sequence_index.shape != stats.policy_logp.shape:
        raise ValueError(
            f"sequence_index must have the shape of the statistics {tuple(stats.policy_logp.shape)}, "
            f"got {tuple(sequence_index.shape)}"
        )
    low, high = index_range(sequence_index) if sequence_index.numel() else (0, -1)
    if low < 0 or high >= 2 * num_pairs:
        raise ValueError(
            f"sequence_index must lie in [0, {2 * num_pairs}) for {num_pairs} pairs, got values from {low} to {high}"
        )
    log_ratio = stats.policy_logp - stats.reference_logp
    # A token to which both models give probability zero counts nothing: its ratio would be −inf − (−inf), NaN.
    both_zero = (stats.policy_logp == -torch.inf) & (stats.reference_logp == -torch.inf)
    log_ratio = torch.where(both_zero, torch.zeros_like(log_ratio), log_ratio)
    chosen_ratio, rejected_ratio = sum_by_sequence(log_ratio, sequence_index, num_pairs)
    chosen_kl, rejected_kl = sum_by_sequence(stats.forward_kl, sequence_index, num_pairs)
    logp = sum_by_sequence(stats.policy_logp, sequence_index, num_pairs)
    tokens = sequence_index.new_zeros(2 * num_pairs).index_add(0, sequence_index, torch.ones_like(sequence_index))
    return PairScores(
        chosen_ratio, rejected_ratio, chosen_kl, rejected_kl, *logp, tokens[:num_pairs], tokens[num_pairs:]
    )
