"""The model cards of recipes: see `training/model_card.py`, which also writes those of trainers in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import OwnResponsesRecipe, Recipe
from ..training import model_card as cards
from ..training.model_card import Numbers


def model_card(
    recipe: Recipe, data: Mapping[str, Any], train: Numbers, held_out: Numbers | None, versions: Mapping[str, Any]
) -> str:
    """The card of a model that a recipe trained on pairs; see `pair_model_card`."""
    return cards.pair_model_card(recipe.model_dump(), data, train, held_out, versions)


def own_responses_model_card(
    recipe: OwnResponsesRecipe, prompts: int, train: Numbers, held_out: Numbers | None, versions: Mapping[str, Any]
) -> str:
    """The card of a model that learned from its own responses to so many prompts of a recipe."""
    source = recipe.environment.label if recipe.environment else str(recipe.prompts and recipe.prompts.train)
    return cards.own_responses_model_card(recipe.model_dump(), source, prompts, train, held_out, versions)
