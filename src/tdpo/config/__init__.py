"""Recipes: one YAML file a run, validated before anything loads."""

from ._explain import nearest_key
from ._sections import Section
from .claims_schema import Claim, ClaimPart, built_in_claims
from .environment_schema import EnvironmentChoice
from .key_documentation import KeyDocumentation, documented_keys, only_in_ppo, only_in_studies, recipe_markdown
from .optimization import Optimizing, Precision, Recording
from .ppo_schema import KL, PPO, PPORecipe, Prompts, Reward, Rollouts
from .python_fields import RecipeFields
from .recipe_loading import (
    AnyRecipe,
    dump_recipe,
    dump_study,
    flatten,
    load_recipe,
    load_study,
)
from .recipe_problems import RecipeError, RecipeProblem
from .schema import (
    Data,
    Evaluation,
    Lora,
    Loss,
    LossName,
    Model,
    PrefixSharing,
    Recipe,
    ReferenceSource,
    Sampling,
    Training,
    TurnsToCount,
)
from .study_schema import ARM_NAMES, Arm, Study, Task
from .training_defaults import VALUE_LEARNING_RATES

__all__ = [
    "ARM_NAMES",
    "KL",
    "PPO",
    "VALUE_LEARNING_RATES",
    "AnyRecipe",
    "Arm",
    "Claim",
    "ClaimPart",
    "Data",
    "EnvironmentChoice",
    "Evaluation",
    "KeyDocumentation",
    "Lora",
    "Loss",
    "LossName",
    "Model",
    "Optimizing",
    "PPORecipe",
    "Precision",
    "PrefixSharing",
    "Prompts",
    "Recipe",
    "RecipeError",
    "RecipeFields",
    "RecipeProblem",
    "Recording",
    "ReferenceSource",
    "Reward",
    "Rollouts",
    "Sampling",
    "Section",
    "Study",
    "Task",
    "Training",
    "TurnsToCount",
    "built_in_claims",
    "documented_keys",
    "dump_recipe",
    "dump_study",
    "flatten",
    "load_recipe",
    "load_study",
    "nearest_key",
    "only_in_ppo",
    "only_in_studies",
    "recipe_markdown",
]
