"""May this model's pairs share their prompt's computation? Asked once, of the model itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..batches import PairBatch, TokenizedPair, padded_batch, shared_prefix_batch
from ..models import policy_hidden
from .config import PrefixSharing

logger = logging.getLogger(__name__)

# Relative distance of hidden states under both layouts: rounding stays far below, a mask that is ignored
# (a sliding window, relative positions, a state-space layer) far above.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def share_prefixes(model: Any, pairs: Sequence[TokenizedPair], pad_token_id: int, asked: PrefixSharing) -> bool:
    """Whether to lay pairs out with shared prompts: "auto" compares one pair under both layouts.

    Raises:
        ValueError: "on", but the model's hidden states differ under the two layouts.
    """
    if asked == "off":
        return False
    with_prompt = [pair for pair in pairs if pair.prompt_ids]
    if not with_prompt:
        return False
    # The longest pair: a sliding window shows only beyond its width.
    longest = max(with_prompt, key=lambda p: len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids))
    distance = _distance(model, longest, pad_token_id)
    if distance <= TOLERANCE.get(model.dtype, 5e-2):
        return True
    if asked == "on":
        raise ValueError(
            f"prefix_sharing='on', but this model's hidden states differ by {distance:.2g} (relative) under the shared "
            "layout: its attention does not take the 4-D mask. Use 'auto' or 'off'."
        )
    return False


@torch.no_grad()
def _distance(model: Any, pair: TokenizedPair, pad_token_id: int) -> float:
    """Relative distance of the response's hidden states under both layouts; inf where the shared one fails."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        padded = _hidden(model, padded_batch([pair], pad_token_id), device)
        shared = _hidden(model, shared_prefix_batch([pair], pad_token_id), device)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        logger.info("the shared layout does not run on this model: %s", error)
        return float("inf")
    finally:
        model.train(was_training)
    return float((padded - shared).norm() / padded.norm().clamp_min(1e-30))


def _hidden(model: Any, batch: PairBatch, device: torch.device) -> torch.Tensor:
    inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
    return policy_hidden(model, inputs, batch.response_index.to(device)).double()
