"""What a recipe holds out to be judged on: pairs, or prompts of an environment or of held-out rows."""

from __future__ import annotations

from ..chat_templates import template_columns
from ..config import AnyRecipe, Recipe
from ..environments import Environment, Prompt
from ..preferences import Preferences
from ..recipe_data.pairs import prompt_key


def check_something_held_out(recipe: AnyRecipe) -> None:
    """Before models load. Raises ValueError where a recipe holds nothing out."""
    if recipe.environment is not None:
        has_pairs = isinstance(recipe, Recipe) and _holds_out_pairs(recipe)
        if not recipe.environment.holds_out and not has_pairs:
            raise ValueError(
                "nothing to evaluate on: the recipe holds no prompts out; set environment.held_out to a file of "
                "prompts that were not trained on"
            )
        return
    if not isinstance(recipe, Recipe):
        if recipe.prompts is None or recipe.prompts.eval is None:
            raise ValueError(
                "nothing to evaluate on: the recipe holds no prompts out; set prompts.eval to a file of prompts that "
                "were not trained on"
            )
    elif not _holds_out_pairs(recipe):
        raise ValueError(
            "nothing to evaluate on: the recipe has neither held-out rows (data.eval, data.eval_fraction) nor an "
            "environment (environment.name) whose prompts and reward could be used"
        )


def _holds_out_pairs(recipe: Recipe) -> bool:
    return recipe.data.eval is not None or recipe.data.eval_fraction is not None


def prompts_of(rows: Preferences) -> Environment:
    """The prompts of held-out rows, each once, as an environment without a reward."""
    unique = {prompt_key(row): row for row in rows.rows}
    held_out = [
        Prompt(f"row {at + 1}", row.prompt, template_columns(row.extra)) for at, row in enumerate(unique.values())
    ]
    return Environment(
        name=rows.source,
        train=[],
        held_out=held_out,
        reward=None,
        reward_name="",
        max_new_tokens=64,
        description="prompts of held-out preferences, without a reward",
    )
