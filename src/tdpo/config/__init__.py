"""Recipes: one YAML file a run, validated before anything loads."""

from ._explain import nearest_key
from ._sections import Section
from .claims_schema import Claim, ClaimPart, built_in_claims
from .environment_schema import EnvironmentChoice
from .loading import (
    AnyRecipe,
    RecipeError,
    RecipeProblem,
    dump_recipe,
    dump_study,
    flatten,
    load_recipe,
    load_study,
)
from .ppo_schema import KL, PPO, PPORecipe, Prompts, Reward, Rollouts
from .reference import KeyReference, only_in_ppo, only_in_studies, recipe_markdown, recipe_reference
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
from .study_schema import ARM_NAMES, Arm, Study, Task

__all__ = [
    "ARM_NAMES",
    "KL",
    "PPO",
    "AnyRecipe",
    "Arm",
    "Claim",
    "ClaimPart",
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
    "Study",
    "Task",
    "Training",
    "built_in_claims",
    "dump_recipe",
    "dump_study",
    "flatten",
    "load_recipe",
    "load_study",
    "nearest_key",
    "only_in_ppo",
    "only_in_studies",
    "recipe_markdown",
    "recipe_reference",
]
