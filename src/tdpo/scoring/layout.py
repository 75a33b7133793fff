"""May this model's responses share the computation of their prompt, and share rows? Asked of the model itself.

What decides is how long a sequence is and how wide a row: a window of attention shows beyond its width, a chunk behind
its end. So the answer holds up to the longest sequence and the widest row that were compared, which the collator keeps
to; where longer ones come later, `cover` asks again.

In all functions, `other_models` read the same rows as `model`: a reference, a critic, or None for what there is not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..batches import (
    PromptResponses,
    ResponseCollator,
    full_row,
    fullest_row,
    padded_batch,
    prompt_groups,
    row_length,
    sequence_length,
    sequence_order,
    shared_length,
    shared_prefix_batch,
)
from .options import PrefixSharing
from .row_forms import RowForm, distance_of, row_form, tolerance, unlike_models

logger = logging.getLogger(__name__)


def choose_layout(
    model: Any,
    prompts: Sequence[PromptResponses],
    pad_token_id: int,
    prefix_sharing: PrefixSharing,
    max_tokens_per_row: int | None = None,
    other_models: Sequence[Any | None] = (),
) -> ResponseCollator:
    """The collator of the layout that the options name, or of the nearest that gives this model's hidden states.

    A warning says which option has no effect here, and how many prompts with their responses are longer than
    `max_tokens_per_row`.

    Raises:
        ValueError: `prefix_sharing` is "on", but the model's hidden states differ under shared prompts or in packed
            rows.
    """
    shares = share_prefixes(model, prompts, pad_token_id, prefix_sharing, other_models)
    form = row_form(model, other_models, by_cost=prefix_sharing == "auto") if shares else RowForm()
    collator = _trusted(ResponseCollator(pad_token_id, shares, **vars(form)), prompts)
    if max_tokens_per_row is None:
        return collator
    if not shares:
        logger.warning(
            "max_tokens_per_row=%d has no effect: rows are padded, because %s.",
            max_tokens_per_row,
            "this model's attention does not take the mask of shared prompts"
            if any(prompt.prompt_ids for prompt in prompts)
            else "no pair has a prompt to share",
        )
        return collator
    if not pack_prompts(model, prompts, pad_token_id, prefix_sharing, max_tokens_per_row, other_models):
        return collator
    _report_exceptions(prompts, max_tokens_per_row)
    packed = ResponseCollator(pad_token_id, True, max_tokens_per_row, ranged=form.ranged)
    return _trusted(packed, prompts)


def _trusted(collator: ResponseCollator, prompts: Sequence[PromptResponses]) -> ResponseCollator:
    """The collator, which from here on lays out as shared rows only what is within the extent of these prompts."""
    if collator.share_prefixes:
        collator.trusted = collator.extent([prompt for prompt in prompts if prompt.prompt_ids])
    return collator


def share_prefixes(
    model: Any,
    prompts: Sequence[PromptResponses],
    pad_token_id: int,
    prefix_sharing: PrefixSharing,
    other_models: Sequence[Any | None] = (),
) -> bool:
    """Whether responses are to share their prompt: "auto" compares the decisive ones under both layouts.

    Raises:
        ValueError: "on", but the model's hidden states differ under the two layouts.
    """
    if prefix_sharing == "off":
        return False
    with_prompt = [prompt for prompt in prompts if prompt.prompt_ids]
    if not with_prompt:
        return False
    distance = _distance(model, _decisive(with_prompt), pad_token_id, other_models=other_models)
    if distance <= tolerance(model):
        return True
    if prefix_sharing == "on":
        raise ValueError(_refusal(distance))
    return False


def _decisive(prompts: Sequence[PromptResponses]) -> list[PromptResponses]:
    """The one with the longest sequence, and the one with the widest row where that is another."""
    longest = max(prompts, key=lambda prompt: (sequence_length(prompt), shared_length(prompt)))
    widest = max(prompts, key=shared_length)
    return [longest] if shared_length(longest) == shared_length(widest) else [longest, widest]


def _refusal(distance: float) -> str:
    return (
        f"prefix_sharing='on', but hidden states differ by {distance:.2g} (relative) under the shared layout: the "
        "attention of the model (or of its reference) does not take the 4-D mask. Use 'auto' or 'off'."
    )


def grouped_collator(
    model: Any, prompts: Sequence[PromptResponses], pad_token_id: int, other_models: Sequence[Any | None] = ()
) -> ResponseCollator:
    """The collator where many have the same prompt, as samples do.

    They share prompts as far as this model gives the same hidden states, for which the largest group is compared.
    """
    largest = _largest_group(prompts)
    shares = share_prefixes(model, prompts, pad_token_id, "auto", other_models)
    if shares and len(largest) > 1 and largest[0].prompt_ids:
        distance = _distance(model, largest, pad_token_id, packed=True, grouped=True, other_models=other_models)
        if distance <= tolerance(model):
            form = row_form(model, other_models)
            return _trusted(ResponseCollator(pad_token_id, True, group_prompts=True, **vars(form)), prompts)
        logger.info(
            "hidden states differ by %.2g (relative) where %d rows share a prompt: each has a row of its own",
            distance,
            len(largest),
        )
    form = row_form(model, other_models) if shares else RowForm()
    return _trusted(ResponseCollator(pad_token_id, shares, **vars(form)), prompts)


def _largest_group(prompts: Sequence[PromptResponses]) -> list[PromptResponses]:
    return max(prompt_groups(prompts), key=lambda group: row_length(group, range(len(group)), True))


def cover(
    model: Any,
    collator: ResponseCollator,
    prompts: Sequence[PromptResponses],
    prefix_sharing: PrefixSharing = "auto",
    other_models: Sequence[Any | None] = (),
) -> None:
    """Ask the model again where `prompts` are longer, or make wider rows, than those that `collator` was chosen for.

    What passes is laid out like the others from here on; what does not is padded, which a warning says once.

    Raises:
        ValueError: `prefix_sharing` is "on", and it does not pass.
    """
    trusted, refused, pad = collator.trusted, collator.refused, collator.pad_token_id
    prompts = [prompt for prompt in prompts if prompt.prompt_ids]
    if not prompts or trusted is None:
        return
    longest = max(prompts, key=lambda prompt: (sequence_length(prompt), shared_length(prompt)))
    length = sequence_length(longest)
    if trusted.sequence < length < refused.sequence:
        distance = _distance(model, [longest], pad, other_models=other_models)
        if distance <= tolerance(model):
            trusted.sequence, trusted.width = length, max(trusted.width, shared_length(longest))
        else:
            refused.sequence = length
            _say_padded(f"Sequences of more than {trusted.sequence} tokens (now {length})", distance, prefix_sharing)
    prompts = [prompt for prompt in prompts if sequence_length(prompt) <= trusted.sequence]
    width = collator.extent(prompts).width if prompts else 0
    if trusted.width < width < refused.width:
        row, packed = _widest_row(collator, prompts)
        grouped = collator.group_prompts
        distance = _distance(model, row, pad, packed=packed, grouped=grouped, other_models=other_models)
        if distance <= tolerance(model):
            trusted.width = width
        else:
            refused.width = width
            _say_padded(f"Rows of more than {trusted.width} tokens (now {width})", distance, prefix_sharing)


def _widest_row(collator: ResponseCollator, prompts: Sequence[PromptResponses]) -> tuple[list[PromptResponses], bool]:
    """What stands in the widest row that a batch can have, and whether it is a row of several prompts."""
    if collator.group_prompts:
        return _largest_group(prompts), True
    widest = [max(prompts, key=shared_length)]
    if collator.max_tokens_per_row is not None:
        full = full_row(prompts, collator.max_tokens_per_row)
        if sum(map(shared_length, full)) > shared_length(widest[0]):
            return full, True
    return widest, False


def _say_padded(what: str, distance: float, prefix_sharing: PrefixSharing) -> None:
    if prefix_sharing == "on":
        raise ValueError(f"{what}: {_refusal(distance)}")
    logger.warning(
        "%s are not laid out like the others: hidden states would differ by %.2g (relative) from the model's own. "
        "Padded or narrower rows take their place.",
        what,
        distance,
    )


def pack_prompts(
    model: Any,
    prompts: Sequence[PromptResponses],
    pad_token_id: int,
    prefix_sharing: PrefixSharing,
    max_tokens_per_row: int,
    other_models: Sequence[Any | None] = (),
) -> bool:
    """Whether to pack prompts with their responses into rows: one full row of the longest that fit is compared.

    A model may take the mask of one pair and not that of several: beyond its last position, or where it cuts
    a row into chunks. Says in a warning why not.

    Raises:
        ValueError: `prefix_sharing` is "on", but the model's hidden states differ in a packed row.
    """
    row = fullest_row(prompts, max_tokens_per_row)
    if len(row) < 2:
        logger.warning(
            "max_tokens_per_row=%d has no effect: no two pairs fit into one row. Raise it or leave it out.",
            max_tokens_per_row,
        )
        return False
    full = full_row(prompts, max_tokens_per_row)
    distance = _distance(model, full, pad_token_id, packed=True, other_models=other_models)
    if distance <= tolerance(model):
        return True
    difference = f"this model's hidden states differ by {distance:.2g} (relative) where {len(row)} pairs share a row"
    if prefix_sharing == "on":
        raise ValueError(
            f"prefix_sharing='on' with max_tokens_per_row={max_tokens_per_row}, but {difference}. Leave "
            "max_tokens_per_row out or lower it, or use prefix_sharing='auto'."
        )
    logger.warning(
        "max_tokens_per_row=%d has no effect: %s. Each pair gets a row of its own; leave it out or lower it.",
        max_tokens_per_row,
        difference,
    )
    return False


def _report_exceptions(prompts: Sequence[PromptResponses], max_tokens_per_row: int) -> None:
    lengths = [shared_length(prompt) for prompt in prompts]
    too_long = sum(length > max_tokens_per_row for length in lengths)
    if too_long:
        logger.warning(
            "%d of %d pairs are longer than max_tokens_per_row=%d (the longest has %d tokens); each gets a row of its "
            "own, to which the other rows of its batch are padded.",
            too_long,
            len(prompts),
            max_tokens_per_row,
            max(lengths),
        )
    without_prompt = sum(not prompt.prompt_ids for prompt in prompts)
    if without_prompt:
        logger.warning(
            "%d of %d pairs have no prompt; batches that hold one are padded rows, not packed ones.",
            without_prompt,
            len(prompts),
        )


def _distance(
    model: Any,
    prompts: Sequence[PromptResponses],
    pad_token_id: int,
    *,
    packed: bool = False,
    grouped: bool = False,
    other_models: Sequence[Any | None] = (),
) -> float:
    """Relative distance of the hidden states of a prompt's responses from those in padded rows; inf where it fails.

    The largest over the prompts, and over the model and those of `other_models` that have another architecture.

    Args:
        packed: all prompts stand in one row, else each in a row of its own.
        grouped: equal prompts in a row are one.
    """
    models = unlike_models(model, other_models)
    padded = padded_batch(prompts, pad_token_id)
    rows = [range(len(prompts))] if packed else None
    ranged = row_form(model, other_models).ranged
    shared = shared_prefix_batch(prompts, pad_token_id, rows, group_prompts=grouped, ranged=ranged)
    prompt_of_sequence = torch.tensor([p for p, _ in sequence_order(prompts)])
    return max(distance_of(m, padded, shared, prompt_of_sequence[padded.sequence_index]) for m in models)
