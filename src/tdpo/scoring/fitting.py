"""Whether pairs fit the models that read them: known tokens, and lengths at which rows are independent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..batches import TokenizedPair, sequence_length
from ..models import independent_length, why_dependent


def check_ids(pairs: Sequence[TokenizedPair], vocabulary: int) -> None:
    """Raise ValueError where the data holds tokens that the model's embedding does not."""
    largest = max(max(p.prompt_ids + p.chosen_ids + p.rejected_ids) for p in pairs)
    if largest >= vocabulary:
        raise ValueError(
            f"the data holds token {largest}, but the model knows {vocabulary} tokens: is the tokenizer its own? "
            "After adding tokens, call model.resize_token_embeddings(len(tokenizer))."
        )


def check_lengths(pairs: Sequence[TokenizedPair], configs: Iterable[Any]) -> None:
    """Raise ValueError for a pair at whose length a model's rows depend on each other; it names the first.

    `configs` are those of the models that read the pairs: policy, reference.
    """
    limit = min((length for config in configs if (length := independent_length(config))), default=None)
    if limit is None:
        return
    for pair in pairs:
        if sequence_length(pair) > limit:
            raise ValueError(
                f"{pair.source}:{pair.row} {why_dependent(limit, sequence_length(pair))}. Set max_length "
                f"(data.max_length of a recipe) to {limit} or less, or leave such rows out"
            )
