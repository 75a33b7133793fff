"""From rows to tensors: tokenise, truncate, lay out, and align targets, once.

The unit is a prompt with its responses (`PromptResponses`); a pair is one with two of them. Whatever the layout, a
batch carries for its N counted response tokens the flat position of the hidden state that predicts each one, the token
itself and the number of the response that it belongs to. Nothing that follows knows about padding, prompts or shifted
labels. The letters of shapes are explained in `token_statistics`.
"""

from .collating import Extent, ResponseCollator
from .layouts import padded_batch, shared_prefix_batch
from .reporting import TokenizationReport
from .response_batch import BatchCounts, ResponseBatch, moved
from .responses import (
    FlatOrder,
    PromptResponses,
    counted_tokens,
    sequence_length,
    sequence_order,
    shared_length,
)
from .row_costs import RowCosts
from .row_packing import full_row, fullest_row, group_rows, pack_rows, prompt_groups, row_length
from .tokenized_pair import TokenizedPair
from .tokenizing import TokenizedPairs, tokenize_pair, tokenize_pairs
from .turns import CountedTurns

__all__ = [
    "BatchCounts",
    "CountedTurns",
    "Extent",
    "FlatOrder",
    "PromptResponses",
    "ResponseBatch",
    "ResponseCollator",
    "RowCosts",
    "TokenizationReport",
    "TokenizedPair",
    "TokenizedPairs",
    "counted_tokens",
    "full_row",
    "fullest_row",
    "group_rows",
    "moved",
    "pack_rows",
    "padded_batch",
    "prompt_groups",
    "row_length",
    "sequence_length",
    "sequence_order",
    "shared_length",
    "shared_prefix_batch",
    "tokenize_pair",
    "tokenize_pairs",
]
