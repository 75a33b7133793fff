"""Recipes: one YAML file a run, validated before anything loads."""

from ._explain import nearest_key
from .loading import RECIPE_FILE, RecipeError, RecipeProblem, dump_recipe, flatten, load_recipe
from .reference import KeyReference, recipe_markdown, recipe_reference
from .schema import (
    Data,
    EnvironmentChoice,
    Evaluation,
    Lora,
    Loss,
    Model,
    Recipe,
    Sampling,
    Section,
    Training,
)

__all__ = [
    "RECIPE_FILE",
    "Data",
    "EnvironmentChoice",
    "Evaluation",
    "KeyReference",
    "Lora",
    "Loss",
    "Model",
    "Recipe",
    "RecipeError",
    "RecipeProblem",
    "Sampling",
    "Section",
    "Training",
    "dump_recipe",
    "flatten",
    "load_recipe",
    "nearest_key",
    "recipe_markdown",
    "recipe_reference",
]
