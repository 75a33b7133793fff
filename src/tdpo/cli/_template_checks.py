"""Checks of the chat template for `tdpo doctor`: every prompt can be rendered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import AnyRecipe
    from ..environments import Prompt


def template_checks(recipe: AnyRecipe) -> Iterator[Check]:
    """Render the prompts as in sampling. Raises what sampling raises."""
    from ..config import Recipe
    from ..models import load_tokenizer
    from ..recipe_data.prompts import read_usable_prompts
    from ..sampling.sampler import encode_prompts

    if recipe.environment is None and isinstance(recipe, Recipe):
        return
    try:
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
        prompts = _prompts(recipe)
    except (OSError, ValueError):  # the checks of the model, and of prompts or environment, report it
        return
    if not isinstance(recipe, Recipe):
        train, held_out, descriptions = read_usable_prompts(recipe, tokenizer)
        prompts = [*train, *held_out]
        for name, part in descriptions.items():
            if part.get("refused_by_template"):
                text = f"{part['refused_by_template']} are refused by the chat template and skipped"
                yield Check(f"prompts.{name}", "note", text)
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts], [prompt.id for prompt in prompts])
    yield Check("prompts rendered", "ok", f"{len(encoded)} prompts, the longest of {max(map(len, encoded))} tokens")


def _prompts(recipe: AnyRecipe) -> list[Prompt]:
    from ..config import Recipe
    from ..recipe_data.prompts import read_recipe_prompts

    if not isinstance(recipe, Recipe):
        train, held_out, _ = read_recipe_prompts(recipe)
        return [*train, *held_out]
    assert recipe.environment is not None
    environment = recipe.environment.load()
    return [*environment.train, *environment.held_out]
