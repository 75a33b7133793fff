"""The collator that a trainer's data loader calls: it lays pairs out in the layout that was chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from .layouts import PairBatch, padded_batch, shared_prefix_batch
from .rows import group_rows, pack_rows, prompt_groups, row_length, sequence_length, shared_length
from .tokenizing import TokenizedPair


@dataclass
class Extent:
    """How long a sequence is (prompt and response), and how many tokens a row of several holds."""

    sequence: int
    width: int


@dataclass
class PairCollator:
    """Collate tokenised pairs into the inputs of one step, in the layout chosen.

    A pair without a prompt has nothing to share, and nothing that predicts its first tokens: such a batch
    is always padded.

    Args:
        pad_token_id: fills rows.
        share_prefixes: compute a pair's prompt once (`shared_prefix_batch`); False: each response in a row of its own.
        max_tokens_per_row: pack pairs that share their prompt into rows of up to so many tokens.
        group_prompts: let pairs of a batch that have the same prompt share it too, where that pays (`group_rows`).
        trusted: up to where the model was seen to compute shared rows as it computes padded ones; what is longer or
            wider is padded. None: everywhere.
        refused: from where on it was seen not to.

    Raises:
        ValueError: `max_tokens_per_row` or `group_prompts` without `share_prefixes`, or both of them.
    """

    pad_token_id: int
    share_prefixes: bool = False
    max_tokens_per_row: int | None = None
    group_prompts: bool = False
    reference_rows: Callable[[Sequence[TokenizedPair]], Tensor | None] | None = None
    trusted: Extent | None = None
    refused: Extent = field(default_factory=lambda: Extent(sys.maxsize, sys.maxsize))

    def __post_init__(self) -> None:
        if self.max_tokens_per_row is not None and not self.share_prefixes:
            raise ValueError(
                f"max_tokens_per_row={self.max_tokens_per_row} has no effect on padded rows; set share_prefixes=True "
                "or leave it out"
            )
        if self.group_prompts and (not self.share_prefixes or self.max_tokens_per_row is not None):
            raise ValueError("group_prompts needs share_prefixes=True, and rows that nothing else is packed into")

    def __call__(self, pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
        batch = self._laid_out(pairs)
        if self.reference_rows is not None:
            batch = replace(batch, reference_rows=self.reference_rows(pairs))
        return batch.as_inputs()

    def _laid_out(self, pairs: Sequence[TokenizedPair]) -> PairBatch:
        if not all(map(self._shares, pairs)):
            return padded_batch(pairs, self.pad_token_id)
        rows = None
        if self.max_tokens_per_row is not None:
            rows = pack_rows([shared_length(pair) for pair in pairs], self.max_tokens_per_row)
        elif self.group_prompts:
            rows = group_rows(pairs)
        if rows is not None and not all(self._is_trusted(row_length(pairs, row, self.group_prompts)) for row in rows):
            rows = None
        return shared_prefix_batch(pairs, self.pad_token_id, rows, group_prompts=self.group_prompts)

    def _shares(self, pair: TokenizedPair) -> bool:
        """Whether this pair may have a row in which its responses share their prompt."""
        if not (self.share_prefixes and pair.prompt_ids):
            return False
        within = self.trusted is None or sequence_length(pair) <= self.trusted.sequence
        return within and self._is_trusted(shared_length(pair))

    def _is_trusted(self, width: int) -> bool:
        return self.trusted is None or width <= self.trusted.width

    def extent(self, pairs: Sequence[TokenizedPair]) -> Extent:
        """The longest sequence and the widest row that batches of these pairs can have."""
        widest = max(map(shared_length, pairs))
        if self.group_prompts:
            widest = max(row_length(group, range(len(group)), True) for group in prompt_groups(pairs))
        if self.max_tokens_per_row is not None:
            widest = max(widest, min(self.max_tokens_per_row, sum(map(shared_length, pairs))))
        return Extent(max(map(sequence_length, pairs)), widest)

    def describe(self) -> str:
        """The layout in a few words for the log."""
        if not self.share_prefixes:
            return "padded rows"
        if self.group_prompts:
            return "pairs share their prompt, also with one another"
        if self.max_tokens_per_row is None:
            return "pairs share their prompt"
        return f"pairs share their prompt, packed into rows of at most {self.max_tokens_per_row} tokens"

    def tokens(self, pair: TokenizedPair) -> int:
        """Tokens that the body computes for this pair in a batch of its own, padding included."""
        return shared_length(pair) if self._shares(pair) else 2 * sequence_length(pair)
