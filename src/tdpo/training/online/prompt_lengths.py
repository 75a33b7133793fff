"""Whether the models read every prompt together with the longest response, found out before anything is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...environments import Prompt
from ...sampling.sampler import check_fit, encode_prompts


def encoded_by_name(tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Token ids of each prompt, by what an error calls it: its number, counted from 0, and its id."""
    names = [f"{i} ({prompt.id})" for i, prompt in enumerate(prompts)]
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts], names)
    return dict(zip(names, encoded, strict=True))


def check_all_fit(
    models: Sequence[Any | None], prompts: Sequence[Mapping[str, list[int]]], max_new_tokens: int
) -> None:
    """Raises ValueError where one of the models does not read one of the prompts with a response of this length."""
    for model in models:
        for encoded in prompts if model is not None else []:
            check_fit(model, encoded, max_new_tokens)
