"""The collator that a data loader calls: it lays prompts with their responses out in the layout that was chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .layouts import padded_batch, shared_prefix_batch
from .response_batch import ResponseBatch
from .responses import PromptResponses, sequence_length, shared_length
from .row_costs import RowCosts
from .row_packing import group_rows, pack_rows, prompt_groups, row_length


@dataclass
class Extent:
    """How long a sequence is (prompt and response), and how many tokens a row of several holds."""

    sequence: int
    width: int


@dataclass
class ResponseCollator:
    """Collate prompts with their responses into the inputs of one step, in the layout chosen.

    An empty prompt is nothing to share, and predicts no first token: a batch that holds one is always padded.

    Args:
        pad_token_id: fills rows.
        share_prefixes: compute a prompt once for all of its responses (`shared_prefix_batch`); False: each response in
            a row of its own.
        max_tokens_per_row: pack prompts with their responses into rows of up to so many tokens.
        group_prompts: let those of a batch that have the same prompt share it too, where that pays (`group_rows`).
        reference: gives what a reference cache says about a batch's tokens, `[N, …]` by the names of its fields; None
            where it does not hold them all.
        trusted: up to where the model was seen to compute shared rows as it computes padded ones; what is longer or
            wider is padded. None: everywhere.
        refused: from where on it was seen not to.
        ranged: give masks of shared rows as ranges (`visibility.py`).
        costs: pad a batch whose shared rows would cost more; None: never.

    Raises:
        ValueError: `max_tokens_per_row` or `group_prompts` without `share_prefixes`, or both of them.
    """

    pad_token_id: int
    share_prefixes: bool = False
    max_tokens_per_row: int | None = None
    group_prompts: bool = False
    reference: Callable[[Sequence[PromptResponses]], Mapping[str, Tensor] | None] | None = None
    trusted: Extent | None = None
    refused: Extent = field(default_factory=lambda: Extent(sys.maxsize, sys.maxsize))
    ranged: bool = False
    costs: RowCosts | None = None

    def __post_init__(self) -> None:
        if self.max_tokens_per_row is not None and not self.share_prefixes:
            raise ValueError(
                f"max_tokens_per_row={self.max_tokens_per_row} has no effect on padded rows; set share_prefixes=True "
                "or leave it out"
            )
        if self.group_prompts and (not self.share_prefixes or self.max_tokens_per_row is not None):
            raise ValueError("group_prompts needs share_prefixes=True, and rows that nothing else is packed into")

    def __call__(self, prompts: Sequence[PromptResponses]) -> dict[str, Any]:
        batch = self._batch(prompts)
        if self.reference is not None:
            batch = replace(batch, reference=self.reference(prompts))
        return batch.as_inputs()

    def _batch(self, prompts: Sequence[PromptResponses]) -> ResponseBatch:
        if not all(map(self._shares, prompts)):
            return padded_batch(prompts, self.pad_token_id)
        rows = None
        if self.max_tokens_per_row is not None:
            rows = pack_rows([shared_length(prompt) for prompt in prompts], self.max_tokens_per_row)
        elif self.group_prompts:
            rows = group_rows(prompts)
        if rows is not None and not all(self._is_trusted(row_length(prompts, row, self.group_prompts)) for row in rows):
            rows = None
        if self.costs is not None and self.max_tokens_per_row is None:
            widths = [
                row_length(prompts, row, self.group_prompts) for row in rows or [[p] for p in range(len(prompts))]
            ]
            if not self.costs.shared_is_faster(prompts, widths):
                return padded_batch(prompts, self.pad_token_id)
        return shared_prefix_batch(
            prompts, self.pad_token_id, rows, group_prompts=self.group_prompts, ranged=self.ranged
        )

    def _shares(self, prompt: PromptResponses) -> bool:
        """Whether this prompt may have a row in which its responses share it."""
        if not (self.share_prefixes and prompt.prompt_ids):
            return False
        within = self.trusted is None or sequence_length(prompt) <= self.trusted.sequence
        return within and self._is_trusted(shared_length(prompt))

    def _is_trusted(self, width: int) -> bool:
        return self.trusted is None or width <= self.trusted.width

    def extent(self, prompts: Sequence[PromptResponses]) -> Extent:
        """The longest sequence and the widest row that batches of these can have."""
        widest = max(map(shared_length, prompts))
        if self.group_prompts:
            widest = max(row_length(group, range(len(group)), True) for group in prompt_groups(prompts))
        if self.max_tokens_per_row is not None:
            widest = max(widest, min(self.max_tokens_per_row, sum(map(shared_length, prompts))))
        return Extent(max(map(sequence_length, prompts)), widest)

    def describe(self) -> str:
        """The layout in a few words for the log. Caches are found by them: changed, all are made anew."""
        if not self.share_prefixes:
            return "padded rows"
        if self.group_prompts:
            return "pairs share their prompt, also with one another"
        if self.max_tokens_per_row is None:
            return "pairs share their prompt"
        return f"pairs share their prompt, packed into rows of at most {self.max_tokens_per_row} tokens"

    def describe_rows(self) -> str:
        """The layout and the form in which its rows are given to the model, in a few words that are part of a cache's
        fingerprint."""
        forms = {"seen by ranges": self.ranged, "or padded by cost": self.costs is not None}
        return ", ".join([self.describe(), *(words for words, applies in forms.items() if applies)])

    def tokens(self, prompt: PromptResponses) -> int:
        """Tokens that the body computes for this prompt and its responses in a batch of their own, padding included."""
        return shared_length(prompt) if self._shares(prompt) else len(prompt.responses) * sequence_length(prompt)
