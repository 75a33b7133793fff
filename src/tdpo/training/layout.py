"""May this model's pairs share their prompt's computation, and share rows? Asked once, of the model itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..batches import (
    PairBatch,
    PairCollator,
    TokenizedPair,
    padded_batch,
    row_length,
    shared_length,
    shared_prefix_batch,
)
from ..models import policy_hidden
from .config import PrefixSharing

logger = logging.getLogger(__name__)

# Relative distance of hidden states under both layouts: rounding stays far below, a mask that is ignored
# (a sliding window, relative positions, a state-space layer) far above.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# Longest row that has passed in this process, by model and layout: PPO asks when it trains and again when it is judged.
_agreed: dict[tuple[Any, ...], int] = {}


def choose_layout(
    model: Any,
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    asked: PrefixSharing,
    max_tokens_per_row: int | None = None,
) -> PairCollator:
    """The collator of the layout that is asked for, or of the nearest that gives this model's hidden states.

    What was asked for and cannot be is said in a warning, and so are pairs longer than `max_tokens_per_row`.

    Raises:
        ValueError: "on", but the model's hidden states differ under shared prompts or in packed rows.
    """
    shares = share_prefixes(model, pairs, pad_token_id, asked)
    if max_tokens_per_row is None:
        return PairCollator(pad_token_id, shares)
    if not shares:
        logger.warning(
            "max_tokens_per_row=%d has no effect: rows are padded, because %s.",
            max_tokens_per_row,
            "this model's attention does not take the mask of shared prompts"
            if any(pair.prompt_ids for pair in pairs)
            else "no pair has a prompt to share",
        )
        return PairCollator(pad_token_id)
    if not pack_pairs(model, pairs, pad_token_id, asked, max_tokens_per_row):
        return PairCollator(pad_token_id, share_prefixes=True)
    _report_exceptions(pairs, max_tokens_per_row)
    return PairCollator(pad_token_id, share_prefixes=True, max_tokens_per_row=max_tokens_per_row)


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
    longest = max(with_prompt, key=shared_length)
    distance = _distance(model, [longest], pad_token_id)
    if distance <= _tolerance(model):
        return True
    if asked == "on":
        raise ValueError(
            f"prefix_sharing='on', but this model's hidden states differ by {distance:.2g} (relative) under the shared "
            "layout: its attention does not take the 4-D mask. Use 'auto' or 'off'."
        )
    return False


def grouped_collator(model: Any, pairs: Sequence[TokenizedPair], pad_token_id: int) -> PairCollator:
    """The collator of pairs of which many have the same prompt, as samples have: prompts are shared as far as this
    model gives the same hidden states, which the largest group is compared for."""
    groups: dict[tuple[int, ...], list[TokenizedPair]] = {}
    for pair in pairs:
        groups.setdefault(tuple(pair.prompt_ids), []).append(pair)
    largest = max(groups.values(), key=lambda group: row_length(group, range(len(group)), True))
    if len(largest) > 1 and largest[0].prompt_ids:
        distance = _distance(model, largest, pad_token_id, packed=True, grouped=True)
        if distance <= _tolerance(model):
            return PairCollator(pad_token_id, share_prefixes=True, group_prompts=True)
        logger.info(
            "hidden states differ by %.2g (relative) where %d pairs share a prompt: each has a row",
            distance,
            len(largest),
        )
    return PairCollator(pad_token_id, share_prefixes(model, pairs, pad_token_id, "auto"))


def pack_pairs(
    model: Any, pairs: Sequence[TokenizedPair], pad_token_id: int, asked: PrefixSharing, max_tokens_per_row: int
) -> bool:
    """Whether to pack pairs into rows: compares one full row of the longest pairs that fit with padded rows.

    A model may take the mask of one pair and not that of several: beyond its last position, or where it cuts
    a row into chunks. Says in a warning why not.

    Raises:
        ValueError: "on", but the model's hidden states differ in a packed row.
    """
    row = fullest_row(pairs, max_tokens_per_row)
    if len(row) < 2:
        logger.warning(
            "max_tokens_per_row=%d has no effect: no two pairs fit into one row. Raise it or leave it out.",
            max_tokens_per_row,
        )
        return False
    distance = _distance(model, row, pad_token_id, packed=True)
    if distance <= _tolerance(model):
        return True
    found = f"this model's hidden states differ by {distance:.2g} (relative) where {len(row)} pairs share a row"
    if asked == "on":
        raise ValueError(
            f"prefix_sharing='on' with max_tokens_per_row={max_tokens_per_row}, but {found}. Leave max_tokens_per_row "
            "out or lower it, or use prefix_sharing='auto'."
        )
    logger.warning(
        "max_tokens_per_row=%d has no effect: %s. Each pair gets a row of its own; leave it out or lower it.",
        max_tokens_per_row,
        found,
    )
    return False


def fullest_row(pairs: Sequence[TokenizedPair], max_tokens_per_row: int) -> list[TokenizedPair]:
    """As many of the longest pairs as fit into one row beside at least one other; empty where no two fit."""
    by_length = sorted((pair for pair in pairs if pair.prompt_ids), key=shared_length)
    if len(by_length) < 2:
        return []
    room_beside_the_shortest = max_tokens_per_row - shared_length(by_length[0])
    row: list[TokenizedPair] = []
    room = max_tokens_per_row
    for pair in reversed(by_length):
        length = shared_length(pair)
        if length <= (room if row else room_beside_the_shortest):
            row.append(pair)
            room -= length
    return row if len(row) > 1 else []


def _report_exceptions(pairs: Sequence[TokenizedPair], max_tokens_per_row: int) -> None:
    lengths = [shared_length(pair) for pair in pairs]
    too_long = sum(length > max_tokens_per_row for length in lengths)
    if too_long:
        logger.warning(
            "%d of %d pairs are longer than max_tokens_per_row=%d (the longest has %d tokens); each gets a row of its "
            "own, to which the other rows of its batch are padded.",
            too_long,
            len(pairs),
            max_tokens_per_row,
            max(lengths),
        )
    without_prompt = sum(not pair.prompt_ids for pair in pairs)
    if without_prompt:
        logger.warning(
            "%d of %d pairs have no prompt; batches that hold one are padded rows, not packed ones.",
            without_prompt,
            len(pairs),
        )


def _tolerance(model: Any) -> float:
    return TOLERANCE.get(model.dtype, 5e-2)


@torch.no_grad()
def _distance(
    model: Any, pairs: Sequence[TokenizedPair], pad_token_id: int, *, packed: bool = False, grouped: bool = False
) -> float:
    """Largest relative distance of a pair's hidden states from those in padded rows; inf where the layout fails.

    What decides is the architecture, not the weights: 0 where it has passed in this process, in as long a row.

    Args:
        packed: all pairs in one row, else a row each.
        grouped: which shares what prompts they have in common.
    """
    device = next(model.parameters()).device
    config = model.config
    asked = (config.to_json_string(), config._attn_implementation, model.dtype, device.type, packed, grouped)
    length = row_length(pairs, range(len(pairs)), grouped) if packed else max(map(shared_length, pairs))
    if length <= _agreed.get(asked, -1):
        return 0.0
    was_training = model.training
    model.eval()
    try:
        padded = padded_batch(pairs, pad_token_id)
        rows = [range(len(pairs))] if packed else None
        shared = shared_prefix_batch(pairs, pad_token_id, rows, group_prompts=grouped)
        expected, found = _hidden(model, padded, device), _hidden(model, shared, device)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        logger.info("the shared layout does not run on this model: %s", error)
        return float("inf")
    finally:
        model.train(was_training)
    pair_index = padded.sequence_index.to(device) % len(pairs)
    off, norm = (torch.zeros(len(pairs), device=device, dtype=torch.double) for _ in range(2))
    off.index_add_(0, pair_index, (expected - found).square().sum(dim=1))
    norm.index_add_(0, pair_index, expected.square().sum(dim=1))
    distance = float((off / norm.clamp_min(1e-60)).max().sqrt())
    if distance <= _tolerance(model):
        _agreed[asked] = length
    return distance


def _hidden(model: Any, batch: PairBatch, device: torch.device) -> torch.Tensor:
    inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
    return policy_hidden(model, inputs, batch.response_index.to(device)).double()
