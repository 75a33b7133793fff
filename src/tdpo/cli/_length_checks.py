"""What `tdpo doctor` says about lengths: whether every sequence fits into the models that read it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import PPORecipe


def prompt_lengths(recipe: PPORecipe) -> Iterator[Check]:
    """Prompts with their answers, by the question that training and sampling ask."""
    from ..generation import check_fit, encode_prompts
    from ..models import configuration_of, load_tokenizer
    from ..training.ppo_data import read_recipe_prompts
    from ..training.ppo_run import new_tokens_of

    trust = recipe.model.trust_remote_code
    try:
        answer = new_tokens_of(recipe)
        train, held_out, _ = read_recipe_prompts(recipe)
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
    except (OSError, ValueError):  # the checks of prompts and model say it
        return
    prompts = [*train, *held_out]
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts], [prompt.id for prompt in prompts])
    named = dict(zip((prompt.id for prompt in prompts), encoded, strict=True))
    for name in (recipe.model.name, recipe.model.reference, recipe.ppo.value_model):
        if name is not None:
            check_fit(SimpleNamespace(config=configuration_of(name, trust_remote_code=trust)), named, answer)
    longest = max(map(len, encoded))
    yield Check("prompt lengths", "ok", f"the longest prompt has {longest} tokens, its answer up to {answer}")
