"""Checks of lengths and layouts for `tdpo doctor`: the models can read every sequence in the layout of the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..batches import TokenizedPair
    from ..config import OwnResponsesRecipe, Recipe


def prompt_lengths(recipe: OwnResponsesRecipe) -> Iterator[Check]:
    """Check that prompts and responses fit the models, by the function that training and sampling use."""
    from ..config import PPORecipe
    from ..models import configuration_of, load_tokenizer
    from ..recipe_data.prompts import read_recipe_prompts
    from ..sampling.sampler import check_fit, encode_prompts
    from ..workflows.trainer_arguments import new_tokens_of

    trust = recipe.model.trust_remote_code
    try:
        response_length = new_tokens_of(recipe)
        train, held_out, _ = read_recipe_prompts(recipe)
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
    except (OSError, ValueError):  # the checks of prompts and model say it
        return
    prompts = [*train, *held_out]
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts], [prompt.id for prompt in prompts])
    ids_by_prompt = dict(zip((prompt.id for prompt in prompts), encoded, strict=True))
    critic = recipe.ppo.value_model if isinstance(recipe, PPORecipe) else None
    for name in (recipe.model.name, recipe.model.reference, critic):
        if name is not None:
            config = configuration_of(name, trust_remote_code=trust)
            check_fit(SimpleNamespace(config=config), ids_by_prompt, response_length)
    longest = max(map(len, encoded))
    yield Check("prompt lengths", "ok", f"the longest prompt has {longest} tokens, its answer up to {response_length}")


def layout(recipe: Recipe, pairs: Sequence[TokenizedPair], configs: Sequence[Any]) -> Iterator[Check]:
    """Check with small models of the same architecture that the models take the shared prompts that the recipe demands.

    Raises ValueError if training would refuse `prefix_sharing: on`.
    """
    if recipe.training.prefix_sharing != "on":
        return
    from ..batches import PromptResponses
    from ..models.miniature import VOCABULARY, miniature
    from ..scoring.layout import choose_layout

    trust = recipe.model.trust_remote_code
    models = [small for config in configs if (small := miniature(config, trust_remote_code=trust)) is not None]
    if not models:
        return  # too large for a small copy; training tests the model itself

    def folded(ids: list[int]) -> list[int]:
        return [token % VOCABULARY for token in ids]

    few = [PromptResponses(folded(p.prompt_ids), [*map(folded, p.responses)], p.source, p.row, p.gaps) for p in pairs]
    choose_layout(models[0], few, 0, "on", recipe.training.max_tokens_per_row, other_models=models[1:])
    yield Check("layout", "ok", "the model takes the mask of shared prompts")
