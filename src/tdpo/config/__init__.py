"""Recipes: one YAML file a run, validated before anything loads."""

from ._explain import nearest_key
from ._sections import Section
from .environment_schema import EnvironmentChoice
from .loading import RECIPE_FILE, AnyRecipe, RecipeError, RecipeProblem, dump_recipe, flatten, load_recipe
from .ppo_schema import KL, PPO, PPORecipe, Prompts, Reward, Rollouts
from .reference import KeyReference, only_in_ppo, recipe_markdown, recipe_reference
from .schema import (
    Data,
    Evaluation,
    Lora,
    Loss,
    Model,
    Recipe,
    Sampling,
    Training,
)

__all__ = [
    "KL",
    "PPO",
    "RECIPE_FILE",
    "AnyRecipe",
    "Data",
    "EnvironmentChoice",
    "Evaluation",
    "KeyReference",
    "Lora",
    "Loss",
    "Model",
    "PPORecipe",
    "Prompts",
    "Recipe",
    "RecipeError",
    "RecipeProblem",
    "Reward",
    "Rollouts",
    "Sampling",
    "Section",
    "Training",
    "dump_recipe",
    "flatten",
    "load_recipe",
    "nearest_key",
    "only_in_ppo",
    "recipe_markdown",
    "recipe_reference",
]
