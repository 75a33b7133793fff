"""What is logged and judged of each pair, and how it is averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import LossBesideKL, PreferenceLoss
from ..scores import PairScores, mean_over_tokens, sum_by_sequence
from ..token_statistics import TokenStats
from .configured_loss import beta_of, is_per_token

# Columns of the table that `pair_metrics` returns. All are averaged over pairs, except the last two,
# whose ratio is the entropy per token. Without a KL beside the loss `kl_term` is 0, and trainers do not log it.
PAIR_METRICS = (
    "loss",
    "accuracy",
    "margin",
    "chosen_reward",
    "rejected_reward",
    "chosen_logp",
    "rejected_logp",
    "chosen_forward_kl",
    "rejected_forward_kl",
    "chosen_reverse_kl",
    "rejected_reverse_kl",
    "kl_term",
    "entropy_sum",
    "tokens",
)
# What is logged of them: averages over pairs, and the entropy per token.
LOGGED_OF_PAIRS = (*PAIR_METRICS[:-2], "policy_entropy")

TIE = 8.0  # the last three bits


def ranked_correctly(margin: Tensor, response_nats: Tensor, beta: float) -> Tensor:
    """1 where the chosen response is ahead, 0 where the rejected one is, ½ for a tie: `[P]` float64.

    A tie is a margin that float arithmetic cannot tell from zero: |margin| ≤ β·8·ε·S. S is the sum of |log π| over the
    tokens of both responses, whose log-probabilities the margin is a difference of, and ε the spacing of their numbers
    (1.2e-7 of float32). One and the same float32 model gives sums that differ by up to 7.5·ε·S where its batches have
    other shapes (SmolLM2-135M). For responses of 100 nats together and β = 0.1 the limit is a margin of 1e-5.

    So the accuracy is 0.5 where policy and reference are equal. TRL counts a margin of zero as wrong. What a forward in
    bfloat16 rounds is far more and no tie: between batches of one shape it is the same for both models.

    Args:
        margin: `[P]`, in nats times β.
        response_nats: `[P]`, S in nats; its dtype gives ε. Where the margin is of means over tokens, S is of means too.
        beta: what a nat of a log-ratio counts in the margin.
    """
    limit = beta * TIE * torch.finfo(response_nats.dtype).eps * response_nats.double()
    ahead = (margin > 0).double()
    return torch.where(margin.detach().double().abs() <= limit, torch.full_like(ahead, 0.5), ahead)


@torch.no_grad()
def pair_metrics(
    stats: TokenStats,
    scores: PairScores,
    loss: PreferenceLoss,
    sequence_index: Tensor,
    num_pairs: int,
    of_pairs: Callable[[PairScores], PreferenceLoss],
) -> Tensor:
    """`[P, len(PAIR_METRICS)]` float64: loss and rewards in nats (times β), logp and KLs in nats per sequence.

    `of_pairs` is what `loss` was made with; a KL beside it does not matter. SimPO's rewards are of nats per token.
    """

    def by_pair(values: Tensor) -> tuple[Tensor, Tensor]:
        return sum_by_sequence(values.detach().double(), sequence_index, num_pairs)

    assert stats.reverse_kl is not None and stats.policy_entropy is not None
    entropy = by_pair(stats.policy_entropy)
    tokens = by_pair(torch.ones_like(stats.policy_logp))
    # A token that the policy forbids is no rounding: its margin is infinite, and no tie.
    sizes = sum_by_sequence(stats.policy_logp.detach().abs().nan_to_num(posinf=0.0), sequence_index, num_pairs)
    if is_per_token(of_pairs):
        assert scores.chosen_tokens is not None and scores.rejected_tokens is not None
        sizes = mean_over_tokens(sizes[0], scores.chosen_tokens), mean_over_tokens(sizes[1], scores.rejected_tokens)
    columns = [
        loss.per_pair,
        ranked_correctly(loss.margin, sizes[0] + sizes[1], beta_of(of_pairs)),
        loss.margin,
        loss.chosen_reward,
        loss.rejected_reward,
        *by_pair(stats.policy_logp),
        scores.chosen_sequence_kl,
        scores.rejected_sequence_kl,
        *by_pair(stats.reverse_kl),
        loss.kl_term if isinstance(loss, LossBesideKL) else torch.zeros_like(loss.per_pair),
        entropy[0] + entropy[1],
        tokens[0] + tokens[1],
    ]
    return torch.stack([c.detach().double() for c in columns], dim=1)


def averages(sums: Tensor, pairs: float) -> dict[str, float]:
    """Logged numbers from the column sums `[len(PAIR_METRICS)]` over `pairs` pairs."""
    if not pairs:
        return {}
    totals = dict(zip(PAIR_METRICS, sums.tolist(), strict=True))
    entropy_sum, tokens = totals.pop("entropy_sum"), totals.pop("tokens")
    logged = {name: value / pairs for name, value in totals.items()}
    logged["policy_entropy"] = entropy_sum / tokens if tokens else 0.0
    return logged
