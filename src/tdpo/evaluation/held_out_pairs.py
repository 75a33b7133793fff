"""Held-out pairs: accuracy, margin, log-ratios and both KLs of a trained policy, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batches import PromptResponses, ResponseBatch, ResponseCollator, TokenizedPair
from ..losses import PreferenceLoss
from ..scores import PairScores, score_pairs, sum_by_sequence
from ..scoring.fitting import check_lengths
from ..scoring.layout import choose_layout
from ..scoring.pair_metrics import PAIR_METRICS, pair_metrics
from ..scoring.policy_statistics import PolicyStatistics
from ..token_statistics import TokenStats
from .intervals import METHOD, SHARE_METHOD, mean_by_prompt, numbered, share_interval

SHOWN = (
    "accuracy", "margin", "chosen_logp", "rejected_logp", "chosen_forward_kl", "rejected_forward_kl",
    "chosen_reverse_kl", "rejected_reverse_kl",
)  # fmt: skip
# What the reference says of both responses, and how far the policy moved from there (log π − log π_ref).
MOVED = ("chosen_reference_logp", "rejected_reference_logp", "chosen_log_ratio", "rejected_log_ratio")

Progress = Callable[[int, int], None]


@torch.no_grad()
def evaluate_pairs(
    model: Any,
    statistics: PolicyStatistics,
    loss: Callable[[PairScores], PreferenceLoss],
    pairs: Sequence[TokenizedPair],
    *,
    pad_token_id: int,
    batch_size: int,
    prompts: Sequence[Hashable] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Means over pairs, and 95 % intervals in "intervals"; logp, log-ratios and KLs in nats per sequence.

    Args:
        model: the policy.
        statistics: what it and the reference say about tokens.
        loss: gives margin and rewards; of `configured_loss`.
        pairs: at least one.
        pad_token_id: for batches.
        batch_size: pairs of a forward.
        prompts: what tells prompts apart, one for each pair, since pairs of one prompt are not independent; None: their
            token ids. "prompts" is how many there are.
        progress: called with the number of pairs done, and of all.

    An interval is None where there are fewer than six prompts or all values are equal; that of the accuracy never is.
    """
    tables = []
    device = next(model.parameters()).device
    other = statistics.reference_model
    check_lengths(pairs, [m.config for m in (model, other) if m is not None])
    collator = choose_layout(model, pairs, pad_token_id, "auto", other_models=[other])
    for start in range(0, len(pairs), batch_size):
        batch = collated(collator, pairs[start : start + batch_size], device)
        stats = statistics(model, batch, extras=("reverse_kl", "policy_entropy"))
        scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
        metrics = pair_metrics(stats, scores, loss(scores), batch.sequence_index, batch.num_prompts, loss)
        tables.append(torch.cat([metrics, _moved(stats, scores, batch)], dim=1).cpu())
        if progress is not None:
            progress(min(start + batch_size, len(pairs)), len(pairs))
    table = torch.cat(tables).numpy()
    places = {name: place for place, name in enumerate((*PAIR_METRICS, *MOVED))}
    columns = {name: table[:, places[name]].astype(np.float64) for name in (*SHOWN, *MOVED)}
    groups = numbered([tuple(pair.prompt_ids) for pair in pairs] if prompts is None else prompts)
    intervals = {name: mean_by_prompt(column, groups) for name, column in columns.items()}
    return {
        "count": len(pairs),
        "prompts": int(groups.max()) + 1,
        **{name: float(column.mean()) for name, column in columns.items()},
        "intervals": {**intervals, "accuracy": share_interval(columns["accuracy"], groups)},
        "method": f"{METHOD}; accuracy: {SHARE_METHOD}",
    }


def _moved(stats: TokenStats, scores: PairScores, batch: ResponseBatch) -> Tensor:
    """The columns `MOVED` of each pair, `[P, 4]` float64, in nats per sequence."""
    reference = sum_by_sequence(stats.reference_logp.double(), batch.sequence_index, batch.num_prompts)
    return torch.stack([*reference, scores.chosen_log_ratio.double(), scores.rejected_log_ratio.double()], dim=1)


def collated(collator: ResponseCollator, prompts: Sequence[PromptResponses], device: torch.device) -> ResponseBatch:
    """One batch on `device`."""
    return ResponseBatch.from_inputs(collator(prompts), device)
