"""Whether tokens and lengths fit the models that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..batches import PromptResponses, sequence_length
from ..models import independent_length, why_dependent


def check_ids(prompts: Sequence[PromptResponses], vocabulary: int) -> None:
    """Raise ValueError where the data holds tokens that the model's embedding does not have."""
    largest = max(max(ids) for prompt in prompts for ids in (prompt.prompt_ids, *prompt.responses) if ids)
    if largest >= vocabulary:
        raise ValueError(
            f"the data holds token {largest}, but the model knows {vocabulary} tokens: is the tokenizer its own? "
            "After adding tokens, call model.resize_token_embeddings(len(tokenizer))."
        )


def check_lengths(prompts: Sequence[PromptResponses], configs: Iterable[Any]) -> None:
    """Raise ValueError, naming the first, where a sequence is so long that a model's rows depend on each other.

    `configs` are those of the models that read them: policy, reference.
    """
    limit = min((length for config in configs if (length := independent_length(config))), default=None)
    if limit is None:
        return
    for prompt in prompts:
        if sequence_length(prompt) > limit:
            raise ValueError(
                f"{prompt.source}:{prompt.row} {why_dependent(limit, sequence_length(prompt))}. Set max_length "
                f"(data.max_length of a recipe) to {limit} or less, or leave such rows out"
            )
