"""Pairs as tensors: a row a response, or rows in which responses share their prompt; targets aligned once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rows import row_length
from .tokenizing import TokenizedPair
from .turns import Gaps


@dataclass(frozen=True)
class PairBatch:
    """P pairs, ready for one forward of the body.

    `input_ids` `[R, T]`, `attention_mask` (`[R, T]`, or bool `[R, 1, T, T]` where responses share a row) and,
    where they are not 0, 1, 2, …, `position_ids` `[R, T]` feed the model; of its hidden states `[R·T, D]`,
    `response_index` `[N]` picks those that predict the N counted tokens `target_ids` `[N]`, which
    belong to the sequences `sequence_index` `[N]` in [0, 2P): chosen of pair p is p, rejected P + p.
    `reference_rows` `[N]`, where there is a reference cache, says in which of its rows each token stands.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_index: Tensor
    target_ids: Tensor
    sequence_index: Tensor
    num_pairs: int
    position_ids: Tensor | None = None
    reference_rows: Tensor | None = None

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> PairBatch:
        """Undo `as_inputs`, after a trainer has moved the tensors to its device."""
        return cls(**{**inputs, "num_pairs": int(inputs["num_pairs"])})

    def as_inputs(self) -> dict[str, Tensor]:
        """A mapping of tensors, the form in which `transformers.Trainer` moves batches about."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        named["num_pairs"] = torch.tensor(self.num_pairs)
        return {name: value for name, value in named.items() if value is not None}

    @property
    def num_tokens(self) -> int:
        """Tokens that the body works on, padding left out."""
        mask = self.attention_mask
        return int((mask if mask.dim() == 2 else mask.diagonal(dim1=-2, dim2=-1)).sum())

    def model_inputs(self) -> dict[str, Tensor]:
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.position_ids is None else {**inputs, "position_ids": self.position_ids}


def padded_batch(pairs: Sequence[TokenizedPair], pad_token_id: int) -> PairBatch:
    """One row a response, chosen rows first, padded on the right to the longest: `[2P, T]`, less those without one."""
    responses = [(p.prompt_ids, p.chosen_ids, p.chosen_gaps) for p in pairs]
    responses += [(p.prompt_ids, p.rejected_ids, p.rejected_gaps) for p in pairs]
    rows = [(s, *responses[s]) for s in range(len(responses)) if responses[s][1]] or [(0, *responses[0])]
    width = max(len(prompt) + len(response) for _, prompt, response, _ in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    index: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    for r, (number, prompt, response, gaps) in enumerate(rows):
        ids = prompt + response
        input_ids[r, : len(ids)] = torch.tensor(ids)
        attention_mask[r, : len(ids)] = 1
        # Without a prompt nothing predicts the first token, so it cannot be counted.
        counted = [t for t in range(max(len(prompt), 1), len(ids)) if not _lies_in(t - len(prompt), gaps)]
        index.extend(r * width + t - 1 for t in counted)
        targets.extend(ids[t] for t in counted)
        sequence.extend([number] * len(counted))
    return PairBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_index=torch.tensor(index, dtype=torch.long),
        target_ids=torch.tensor(targets, dtype=torch.long),
        sequence_index=torch.tensor(sequence, dtype=torch.long),
        num_pairs=len(pairs),
    )


def _lies_in(position: int, gaps: Gaps) -> bool:
    return any(start <= position < stop for start, stop in gaps)


def shared_prefix_batch(
    pairs: Sequence[TokenizedPair],
    pad_token_id: int,
    rows: Sequence[Sequence[int]] | None = None,
    *,
    group_prompts: bool = False,
) -> PairBatch:
    """A pair's prompt, chosen and rejected in one row, `[R, T]`; the prompt is computed once (arXiv 2410.20305).

    Under the 4-D mask `[R, 1, T, T]` a response sees its prompt and itself alone, and positions restart at the prompt's
    end, so every response has the hidden states that it has in a row of its own.

    Args:
        pairs: P pairs, each with a prompt.
        pad_token_id: fills rows to the width of the longest. Nothing attends to padding; padding attends to the
            row's first token, so that its softmax is no 0/0.
        rows: indices of the pairs in each row, every pair once, as `pack_rows` gives them; None gives each pair a
            row of its own. The flat tokens are the same, only `response_index` knows where their states lie.
        group_prompts: a pair that follows one with the same prompt in its row shares that prompt (`group_rows`).

    Raises:
        ValueError: a pair without a prompt, whose first response tokens nothing predicts.
    """
    for pair in pairs:
        if not pair.prompt_ids:
            raise ValueError(f"{pair.source}:{pair.row} has no prompt to share; lay such pairs out with padded_batch")
    rows = [[p] for p in range(len(pairs))] if rows is None else rows
    width = max(row_length(pairs, row, group_prompts) for row in rows)
    # Ids and positions as lists: with short responses, a tensor operation for each would be most of the work.
    input_ids: list[list[int]] = [[] for _ in rows]
    position_ids: list[list[int]] = [[] for _ in rows]
    mask = torch.zeros(len(rows), 1, width, width, dtype=torch.bool)
    mask[..., 0] = True
    causal = torch.ones(width, width, dtype=torch.bool).tril_()
    places = _Places([0] * len(pairs), [0] * len(pairs))
    for r, row in enumerate(rows):
        end, shown = 0, slice(0, 0)
        prompt: list[int] = []
        for p in row:
            pair = pairs[p]
            if not (group_prompts and pair.prompt_ids == prompt):
                prompt, shown = pair.prompt_ids, slice(end, end + len(pair.prompt_ids))
                input_ids[r] += prompt
                position_ids[r] += range(len(prompt))
                mask[r, 0, shown, 0] = False  # of another prompt, unless this is the row's first
                mask[r, 0, shown, shown] = causal[: len(prompt), : len(prompt)]
                end = shown.stop
            places.prompt_end[p], places.response[p] = r * width + shown.stop, r * width + end
            for ids in (pair.chosen_ids, pair.rejected_ids):
                own, length = slice(end, end + len(ids)), len(ids)
                input_ids[r] += ids
                position_ids[r] += range(len(prompt), len(prompt) + length)
                mask[r, 0, own, 0] = False
                mask[r, 0, own, shown] = True
                mask[r, 0, own, own] = causal[:length, :length]
                end = own.stop
    response_index, targets, sequence = _response_tokens(pairs, places)
    tokens = _filled(input_ids, width, pad_token_id)
    return PairBatch(
        input_ids=tokens,
        attention_mask=mask,
        response_index=response_index,
        target_ids=tokens.flatten()[targets],
        sequence_index=sequence,
        num_pairs=len(pairs),
        position_ids=_filled(position_ids, width, 0),
    )


def _filled(rows: list[list[int]], width: int, value: int) -> Tensor:
    """`[R, width]` of the rows, filled on the right."""
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


@dataclass
class _Places:
    """Flat indices, one a pair: after its prompt's last token, and of its chosen response's first."""

    prompt_end: list[int]
    response: list[int]


def _response_tokens(pairs: Sequence[TokenizedPair], places: _Places) -> tuple[Tensor, Tensor, Tensor]:
    """Of the N response tokens, chosen before rejected: (flat index of the predicting state, token's, sequence)."""
    begins = torch.tensor(places.response)
    chosen = torch.tensor([len(p.chosen_ids) for p in pairs])
    rejected = torch.tensor([len(p.rejected_ids) for p in pairs])
    last_of_prompt = torch.tensor(places.prompt_end).repeat(2) - 1
    first = torch.cat([begins, begins + chosen])
    lengths = torch.cat([chosen, rejected])
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    within = torch.arange(len(sequence)) - (lengths.cumsum(0) - lengths)[sequence]
    token = first[sequence] + within
    predicting = torch.where(within == 0, last_of_prompt[sequence], token - 1)
    all_gaps = [*(p.chosen_gaps for p in pairs), *(p.rejected_gaps for p in pairs)]
    if not any(all_gaps):
        return predicting, token, sequence
    counted = torch.ones(len(sequence), dtype=torch.bool)
    for begin, gaps in zip((lengths.cumsum(0) - lengths).tolist(), all_gaps, strict=True):
        for start, stop in gaps:
            counted[begin + start : begin + stop] = False
    return predicting[counted], token[counted], sequence[counted]
