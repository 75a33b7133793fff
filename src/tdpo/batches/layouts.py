"""Prompts with responses as tensors: a row for each response, or rows that share prompts; targets aligned once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .response_batch import ResponseBatch
from .responses import PromptResponses, sequence_order
from .row_packing import row_length
from .turns import Gaps
from .visibility import dense_mask, few_widths, ranges_of


def padded_batch(prompts: Sequence[PromptResponses], pad_token_id: int) -> ResponseBatch:
    """A row for each response with its prompt, padded on the right to the longest; empty responses have no row."""
    order = enumerate(sequence_order(prompts))
    rows = [(number, p, k) for number, (p, k) in order if prompts[p].responses[k]] or [(0, 0, 0)]
    width = max(len(prompts[p].prompt_ids) + len(prompts[p].responses[k]) for _, p, k in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    index: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    for r, (number, p, k) in enumerate(rows):
        prompt, gaps = prompts[p].prompt_ids, prompts[p].gaps[k]
        ids = prompt + prompts[p].responses[k]
        input_ids[r, : len(ids)] = torch.tensor(ids)
        attention_mask[r, : len(ids)] = 1
        # Without a prompt nothing predicts the first token, so it cannot be counted.
        places = [t for t in range(max(len(prompt), 1), len(ids)) if not _lies_in(t - len(prompt), gaps)]
        index.extend(r * width + t - 1 for t in places)
        targets.extend(ids[t] for t in places)
        sequence.extend([number] * len(places))
    return ResponseBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_index=torch.tensor(index, dtype=torch.long),
        target_ids=torch.tensor(targets, dtype=torch.long),
        sequence_index=torch.tensor(sequence, dtype=torch.long),
        num_prompts=len(prompts),
    )


def _lies_in(position: int, gaps: Gaps) -> bool:
    return any(start <= position < stop for start, stop in gaps)


def shared_prefix_batch(
    prompts: Sequence[PromptResponses],
    pad_token_id: int,
    rows: Sequence[Sequence[int]] | None = None,
    *,
    group_prompts: bool = False,
    ranged: bool = False,
) -> ResponseBatch:
    """A prompt and its responses in one row, `[R, T]`; the prompt is computed once (arXiv 2410.20305).

    Under the 4-D mask `[R, 1, T, T]` a response sees its prompt and itself alone, and positions restart at the prompt's
    end, so every response has the hidden states that it has in a row of its own.

    Args:
        prompts: P prompts with their responses; none of the prompts is empty.
        pad_token_id: fills rows to the width of the longest. Nothing attends to padding; padding attends to the
            row's first token, so that its softmax is no 0/0.
        rows: indices of the prompts in each row, every one once, as `pack_rows` gives them; None gives each a row of
            its own. The flat tokens are the same, only `response_index` knows where their states lie.
        group_prompts: where one of a row has the same prompt as the one before it, the two share it (`group_rows`).
        ranged: give the mask as ranges (`visibility.py`), for attention that skips what a position does not see; rows
            then have one of few widths.

    Raises:
        ValueError: an empty prompt; nothing would predict the first tokens of its responses.
    """
    for prompt in prompts:
        if not prompt.prompt_ids:
            raise ValueError(f"{prompt.source}:{prompt.row} has no prompt to share; lay it out with padded_batch")
    rows = [[p] for p in range(len(prompts))] if rows is None else rows
    width = max(row_length(prompts, row, group_prompts) for row in rows)
    width = few_widths(width) if ranged else width
    # Ids and positions as lists: with short responses, a tensor operation for each would be most of the work.
    input_ids: list[list[int]] = [[] for _ in rows]
    position_ids: list[list[int]] = [[] for _ in rows]
    spans: list[list[tuple[int, int, int, int]]] = [[] for _ in rows]  # length, and what is seen
    places: dict[tuple[int, int], _Place] = {}
    for r, row in enumerate(rows):
        end, prompt_span = 0, slice(0, 0)
        prompt_ids: list[int] = []
        for p in row:
            if not (group_prompts and prompts[p].prompt_ids == prompt_ids):
                prompt_ids = prompts[p].prompt_ids
                prompt_span = slice(end, end + len(prompt_ids))
                input_ids[r] += prompt_ids
                position_ids[r] += range(len(prompt_ids))
                spans[r].append((len(prompt_ids), end, 0, 0))
                end = prompt_span.stop
            for k, ids in enumerate(prompts[p].responses):
                length = len(ids)
                input_ids[r] += ids
                position_ids[r] += range(len(prompt_ids), len(prompt_ids) + length)
                spans[r].append((length, end, prompt_span.start, prompt_span.stop))
                places[p, k] = _Place(r * width + prompt_span.stop - 1, r * width + end, length, prompts[p].gaps[k])
                end += length
    response_index, targets, sequence = _response_tokens([places[place] for place in sequence_order(prompts)])
    tokens, ranges = _filled(input_ids, width, pad_token_id), ranges_of(spans, width)
    return ResponseBatch(
        input_ids=tokens,
        attention_mask=ranges if ranged else dense_mask(ranges),
        response_index=response_index,
        target_ids=tokens.flatten()[targets],
        sequence_index=sequence,
        num_prompts=len(prompts),
        position_ids=_filled(position_ids, width, 0),
    )


def _filled(rows: list[list[int]], width: int, value: int) -> Tensor:
    """`[R, width]` of the rows, filled on the right."""
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


@dataclass(frozen=True)
class _Place:
    """Where a response lies: flat indices of its prompt's last token and of its own first one, its length, its gaps."""

    prompt_end: int
    start: int
    length: int
    gaps: Gaps


def _response_tokens(responses: Sequence[_Place]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices `[N]` of the states that predict the counted tokens, of these tokens, and the responses' numbers."""
    prompt_end = torch.tensor([response.prompt_end for response in responses])
    start = torch.tensor([response.start for response in responses])
    lengths = torch.tensor([response.length for response in responses])
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    begins = lengths.cumsum(0) - lengths
    within = torch.arange(len(sequence)) - begins[sequence]
    token = start[sequence] + within
    predicting = torch.where(within == 0, prompt_end[sequence], token - 1)
    if not any(response.gaps for response in responses):
        return predicting, token, sequence
    is_counted = torch.ones(len(sequence), dtype=torch.bool)
    for begin, response in zip(begins.tolist(), responses, strict=True):
        for first, stop in response.gaps:
            is_counted[begin + first : begin + stop] = False
    return predicting[is_counted], token[is_counted], sequence[is_counted]
