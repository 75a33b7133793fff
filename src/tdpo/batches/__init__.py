"""From preference rows to tensors: tokenise, truncate, lay out, and align targets, once.

Whatever the layout, a batch carries for its N counted response tokens the flat position of the hidden
state that predicts each one, the token itself and the sequence it belongs to. Nothing downstream knows
about padding, prompts or shifted labels.
"""

from .collating import Extent, PairCollator
from .layouts import PairBatch, padded_batch, shared_prefix_batch
from .reporting import TokenizationReport
from .rows import (
    full_row,
    fullest_row,
    group_rows,
    pack_rows,
    prompt_groups,
    row_length,
    sequence_length,
    shared_length,
)
from .tokenizing import TokenizedPair, TokenizedPairs, counted_tokens, tokenize_pair, tokenize_pairs
from .turns import CountedTurns

__all__ = [
    "CountedTurns",
    "Extent",
    "PairBatch",
    "PairCollator",
    "TokenizationReport",
    "TokenizedPair",
    "TokenizedPairs",
    "counted_tokens",
    "full_row",
    "fullest_row",
    "group_rows",
    "pack_rows",
    "padded_batch",
    "prompt_groups",
    "row_length",
    "sequence_length",
    "shared_length",
    "shared_prefix_batch",
    "tokenize_pair",
    "tokenize_pairs",
]
