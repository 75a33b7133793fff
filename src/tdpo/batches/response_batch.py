"""Prompts with responses as tensors, and what is known of them before they go to a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..token_statistics import index_range, note_range
from .visibility import counted_positions


@dataclass(frozen=True)
class BatchCounts:
    """Numbers of a batch that are taken where it is laid out: to ask its device for them would be a wait.

    Args:
        tokens: that the body works on, padding left out.
        sequence_tokens: of all responses, each with its prompt: those of padded rows, whatever the layout, without
            padding. In rows that are shared a response ends with its last counted token, so others' words behind it are
            left out.
        sequences: responses with at least one counted token.
        first_tokens: counted tokens of the first response to each prompt (of pairs, the chosen one), which are the
            first of the flat tokens.
        targets, numbers: smallest and largest entry of `target_ids` and of `sequence_index`; (0, -1) of an empty one.
    """

    tokens: int
    sequence_tokens: int
    sequences: int
    first_tokens: int
    targets: tuple[int, int]
    numbers: tuple[int, int]

    @classmethod
    def of(cls, batch: ResponseBatch) -> BatchCounts:
        numbers, tokens = batch.sequence_index, int(_own_positions(batch.attention_mask).sum())
        targets_and_numbers = [index_range(t) if t.numel() else (0, -1) for t in (batch.target_ids, numbers)]
        first_tokens = int((numbers < batch.num_prompts).sum())
        return cls(tokens, _sequence_tokens(batch, tokens), len(numbers.unique()), first_tokens, *targets_and_numbers)


def _own_positions(mask: Tensor) -> Tensor:
    if mask.dim() == 2:
        return mask
    return counted_positions(mask) if mask.dim() == 3 else mask.diagonal(dim1=-2, dim2=-1)


def _sequence_tokens(batch: ResponseBatch, tokens: int) -> int:
    if batch.position_ids is None:
        return tokens
    ends = batch.position_ids.flatten()[batch.response_index] + 2  # a state predicts the token after its own
    lengths = ends.new_zeros(int(batch.sequence_index.max()) + 1 if len(ends) else 0)
    return int(lengths.scatter_reduce(0, batch.sequence_index, ends, "amax").sum())


@dataclass(frozen=True)
class ResponseBatch:
    """P prompts with S responses, ready for one forward of the body.

    Args:
        input_ids: `[R, T]`.
        attention_mask: `[R, T]`; where responses share a row, bool `[R, 1, T, T]`, or ranges `[R, 3, T]`
            (`visibility.py`).
        response_index: `[N]`, the places among the hidden states `[R·T, D]` that predict the N counted tokens.
        target_ids: `[N]`, these tokens.
        sequence_index: `[N]`, the number of the response that each belongs to, in [0, S), as `sequence_order` has it.
        num_prompts: P; of pairs, their number.
        position_ids: `[R, T]`, where they are not 0, 1, 2, …
        reference: what a cache says about each token, `[N, …]` by the names of its fields, where there is one.
        known_counts: as `counts`; None until they are asked for.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_index: Tensor
    target_ids: Tensor
    sequence_index: Tensor
    num_prompts: int
    position_ids: Tensor | None = None
    reference: Mapping[str, Tensor] | None = None
    known_counts: BatchCounts | None = None

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any], device: torch.device | str | None = None) -> ResponseBatch:
        """Undo `as_inputs`, after a trainer has moved the tensors to its device; or with them moved to `device`."""
        batch = cls(**(inputs if device is None else moved(inputs, device)))
        if (counts := batch.known_counts) is not None:
            for index, known in ((batch.target_ids, counts.targets), (batch.sequence_index, counts.numbers)):
                note_range(index, *known)
        return batch

    def as_inputs(self) -> dict[str, Any]:
        """A mapping of tensors, with some numbers: the form in which `transformers.Trainer` moves batches about."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["known_counts"] = self.counts
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def counts(self) -> BatchCounts:
        """Numbers of this batch; a wait for its device, unless it was laid out on the host and came by `as_inputs`."""
        return BatchCounts.of(self) if self.known_counts is None else self.known_counts

    @property
    def num_tokens(self) -> int:
        """Tokens that the body works on, padding left out."""
        return self.counts.tokens

    @property
    def num_sequence_tokens(self) -> int:
        """`BatchCounts.sequence_tokens`."""
        return self.counts.sequence_tokens

    def model_inputs(self) -> dict[str, Tensor]:
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.position_ids is None else {**inputs, "position_ids": self.position_ids}


def moved(value: Any, device: torch.device | str) -> Any:
    """Tensors, also those within mappings, on `device`; everything else as it is.

    To a GPU they go through pinned memory, so that nobody waits until they have arrived.
    """
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
