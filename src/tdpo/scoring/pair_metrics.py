"""What is logged and judged of each pair, and how it is averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import LossBesideKL, PreferenceLoss
from ..scores import PairScores, sum_by_sequence
from ..token_statistics import TokenStats

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


@torch.no_grad()
def pair_metrics(
    stats: TokenStats, scores: PairScores, loss: PreferenceLoss, sequence_index: Tensor, num_pairs: int
) -> Tensor:
    """`[P, len(PAIR_METRICS)]` float64: loss and rewards in nats (times β), logp and KLs in nats per sequence."""

    def by_pair(values: Tensor) -> tuple[Tensor, Tensor]:
        return sum_by_sequence(values.detach().double(), sequence_index, num_pairs)

    assert stats.reverse_kl is not None and stats.policy_entropy is not None
    entropy = by_pair(stats.policy_entropy)
    tokens = by_pair(torch.ones_like(stats.policy_logp))
    columns = [
        loss.per_pair,
        (loss.margin > 0).double(),
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
