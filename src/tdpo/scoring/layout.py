"""May this model's pairs share their prompt's computation, and share rows? Asked of the model itself.

What decides is how long a sequence is and how wide a row: a window of attention shows beyond its width, a chunk behind
its end. So the answer holds up to the longest sequence and the widest row that were compared, which the collator keeps
to; where longer ones come later, `cover` asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..batches import (
    PairBatch,
    PairCollator,
    TokenizedPair,
    full_row,
    fullest_row,
    padded_batch,
    prompt_groups,
    row_length,
    sequence_length,
    shared_length,
    shared_prefix_batch,
)
from ..models import causal_lm_of, policy_hidden
from .options import PrefixSharing

logger = logging.getLogger(__name__)

# Relative distance of hidden states under both layouts: rounding stays far below, a mask that is ignored
# (a sliding window, relative positions, a state-space layer) far above.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def choose_layout(
    model: Any,
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    asked: PrefixSharing,
    max_tokens_per_row: int | None = None,
    others: Sequence[Any | None] = (),
) -> PairCollator:
    """The collator of the layout that is asked for, or of the nearest that gives this model's hidden states.

    `others` compute the same rows: a reference, a critic. What was asked for and cannot be is said in a warning, and so
    are pairs longer than `max_tokens_per_row`.

    Raises:
        ValueError: "on", but the model's hidden states differ under shared prompts or in packed rows.
    """
    shares = share_prefixes(model, pairs, pad_token_id, asked, others)
    collator = _trusted(PairCollator(pad_token_id, shares), pairs)
    if max_tokens_per_row is None:
        return collator
    if not shares:
        logger.warning(
            "max_tokens_per_row=%d has no effect: rows are padded, because %s.",
            max_tokens_per_row,
            "this model's attention does not take the mask of shared prompts"
            if any(pair.prompt_ids for pair in pairs)
            else "no pair has a prompt to share",
        )
        return collator
    if not pack_pairs(model, pairs, pad_token_id, asked, max_tokens_per_row, others):
        return collator
    _report_exceptions(pairs, max_tokens_per_row)
    return _trusted(PairCollator(pad_token_id, share_prefixes=True, max_tokens_per_row=max_tokens_per_row), pairs)


def _trusted(collator: PairCollator, pairs: Sequence[TokenizedPair]) -> PairCollator:
    """The collator, which from here on lays out as shared rows only what is within these pairs' extent."""
    if collator.share_prefixes:
        collator.trusted = collator.extent([pair for pair in pairs if pair.prompt_ids])
    return collator


def share_prefixes(
    model: Any,
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    asked: PrefixSharing,
    others: Sequence[Any | None] = (),
) -> bool:
    """Whether to lay pairs out with shared prompts: "auto" compares the decisive pairs under both layouts.

    Raises:
        ValueError: "on", but the model's hidden states differ under the two layouts.
    """
    if asked == "off":
        return False
    with_prompt = [pair for pair in pairs if pair.prompt_ids]
    if not with_prompt:
        return False
    distance = _distance(model, _decisive(with_prompt), pad_token_id, others=others)
    if distance <= _tolerance(model):
        return True
    if asked == "on":
        raise ValueError(_refusal(distance))
    return False


def _decisive(pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    """The pair with the longest sequence, and the one with the widest row where that is another."""
    longest, widest = max(pairs, key=lambda p: (sequence_length(p), shared_length(p))), max(pairs, key=shared_length)
    return [longest] if shared_length(longest) == shared_length(widest) else [longest, widest]


def _refusal(distance: float) -> str:
    return (
        f"prefix_sharing='on', but hidden states differ by {distance:.2g} (relative) under the shared layout: the "
        "attention of the model (or of its reference) does not take the 4-D mask. Use 'auto' or 'off'."
    )


def grouped_collator(
    model: Any, pairs: Sequence[TokenizedPair], pad_token_id: int, others: Sequence[Any | None] = ()
) -> PairCollator:
    """The collator of pairs of which many have the same prompt, as samples have: prompts are shared as far as this
    model gives the same hidden states, which the largest group is compared for."""
    largest = _largest_group(pairs)
    shares = share_prefixes(model, pairs, pad_token_id, "auto", others)
    if shares and len(largest) > 1 and largest[0].prompt_ids:
        distance = _distance(model, largest, pad_token_id, packed=True, grouped=True, others=others)
        if distance <= _tolerance(model):
            return _trusted(PairCollator(pad_token_id, share_prefixes=True, group_prompts=True), pairs)
        logger.info(
            "hidden states differ by %.2g (relative) where %d pairs share a prompt: each has a row",
            distance,
            len(largest),
        )
    return _trusted(PairCollator(pad_token_id, shares), pairs)


def _largest_group(pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    return max(prompt_groups(pairs), key=lambda group: row_length(group, range(len(group)), True))


def cover(
    model: Any,
    collator: PairCollator,
    pairs: Sequence[TokenizedPair],
    asked: PrefixSharing = "auto",
    others: Sequence[Any | None] = (),
) -> None:
    """Ask the model again where `pairs` are longer, or make wider rows, than those that `collator` was chosen for.

    What passes is laid out like the others from here on; what does not is padded, which a warning says once.

    Raises:
        ValueError: "on", and it does not pass.
    """
    trusted, refused, pad = collator.trusted, collator.refused, collator.pad_token_id
    pairs = [pair for pair in pairs if pair.prompt_ids]
    if not pairs or trusted is None:
        return
    longest = max(pairs, key=lambda pair: (sequence_length(pair), shared_length(pair)))
    length = sequence_length(longest)
    if trusted.sequence < length < refused.sequence:
        distance = _distance(model, [longest], pad, others=others)
        if distance <= _tolerance(model):
            trusted.sequence, trusted.width = length, max(trusted.width, shared_length(longest))
        else:
            refused.sequence = length
            _say_padded(f"Sequences of more than {trusted.sequence} tokens (now {length})", distance, asked)
    pairs = [pair for pair in pairs if sequence_length(pair) <= trusted.sequence]
    width = collator.extent(pairs).width if pairs else 0
    if trusted.width < width < refused.width:
        row, packed = _widest_row(collator, pairs)
        distance = _distance(model, row, pad, packed=packed, grouped=collator.group_prompts, others=others)
        if distance <= _tolerance(model):
            trusted.width = width
        else:
            refused.width = width
            _say_padded(f"Rows of more than {trusted.width} tokens (now {width})", distance, asked)


def _widest_row(collator: PairCollator, pairs: Sequence[TokenizedPair]) -> tuple[list[TokenizedPair], bool]:
    """The pairs of the widest row that a batch can have, and whether it is a row of several."""
    if collator.group_prompts:
        return _largest_group(pairs), True
    widest = [max(pairs, key=shared_length)]
    if collator.max_tokens_per_row is not None:
        full = full_row(pairs, collator.max_tokens_per_row)
        if sum(map(shared_length, full)) > shared_length(widest[0]):
            return full, True
    return widest, False


def _say_padded(what: str, distance: float, asked: PrefixSharing) -> None:
    if asked == "on":
        raise ValueError(f"{what}: {_refusal(distance)}")
    logger.warning(
        "%s are not laid out like the others: hidden states would differ by %.2g (relative) from the model's own. "
        "Padded or narrower rows take their place.",
        what,
        distance,
    )


def pack_pairs(
    model: Any,
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    asked: PrefixSharing,
    max_tokens_per_row: int,
    others: Sequence[Any | None] = (),
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
    distance = _distance(model, full_row(pairs, max_tokens_per_row), pad_token_id, packed=True, others=others)
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


def _distance(
    model: Any,
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    *,
    packed: bool = False,
    grouped: bool = False,
    others: Sequence[Any | None] = (),
) -> float:
    """Largest relative distance of a pair's hidden states from those in padded rows, over the model
    and those of `others` that are of another architecture; inf where the layout fails.

    Args:
        packed: all pairs in one row, else a row each.
        grouped: which shares what prompts they have in common.
    """
    models = {causal_lm_of(m).config.to_json_string(): m for m in (*others, model) if m is not None}
    padded = padded_batch(pairs, pad_token_id)
    rows = [range(len(pairs))] if packed else None
    shared = shared_prefix_batch(pairs, pad_token_id, rows, group_prompts=grouped)
    return max(_distance_of(m, padded, shared) for m in models.values())


@torch.no_grad()
def _distance_of(model: Any, padded: PairBatch, shared: PairBatch) -> float:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        expected, found = _hidden(model, padded, device), _hidden(model, shared, device)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        logger.info("the shared layout does not run on this model: %s", error)
        return float("inf")
    finally:
        model.train(was_training)
    pair_index = padded.sequence_index.to(device) % padded.num_pairs
    off, norm = (torch.zeros(padded.num_pairs, device=device, dtype=torch.double) for _ in range(2))
    off.index_add_(0, pair_index, (expected - found).square().sum(dim=1))
    norm.index_add_(0, pair_index, expected.square().sum(dim=1))
    return float((off / norm.clamp_min(1e-60)).max().sqrt())


def _hidden(model: Any, batch: PairBatch, device: torch.device) -> torch.Tensor:
    inputs = {name: value.to(device) for name, value in batch.model_inputs().items()}
    return policy_hidden(model, inputs, batch.response_index.to(device)).double()
