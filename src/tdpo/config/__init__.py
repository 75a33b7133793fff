"""Recipes: one YAML file a run, validated before anything loads."""

from ._explain import nearest_key
from ._sections import Section
from ._yaml import read_yaml, write_yaml
from .claims_schema import Claim, ClaimPart, built_in_claims
from .environment_schema import EnvironmentChoice
from .key_documentation import (
    KeyDocumentation,
    documented_keys,
    markdown_table,
    only_in_online,
    only_in_ppo,
    only_in_studies,
    recipe_markdown,
)
from .loss_schema import Loss, LossKL, LossName
from .model_schema import Lora, Model
from .online_schema import Online, OnlineRecipe, pairs_of_a_prompt, why_no_pairs, without_effect_on_distilling
from .optimization import Optimizing, Precision, Recording
from .own_responses_schema import Prompts, Reward, Rollouts
from .ppo_schema import CRITIC_KEYS, KL, PPO, Advantage, PPORecipe, group_obstacle, why_no_weights
from .python_fields import RecipeFields
from .questions_schema import ArmChoice, Contrast, arm_choice
from .recipe_loading import (
    AnyRecipe,
    OwnResponsesRecipe,
    dump_recipe,
    dump_study,
    flatten,
    load_recipe,
    load_study,
)
from .recipe_problems import RecipeError, RecipeProblem
from .reference_update import (
    KLS_OF_EVALUATIONS,
    KLS_OF_TRAINING,
    ReferenceUpdate,
    reference_update_problems,
    why_no_average,
)
from .sampling_engine import Engine, SamplingEngine, engine_problems, why_no_temperature, why_not_handed_over
from .schema import (
    BadRows,
    Data,
    Evaluation,
    LogNames,
    PrefixSharing,
    Recipe,
    ReferenceSource,
    RepeatedRows,
    Sampling,
    Training,
    TurnsToCount,
)
from .study_schema import ARM_NAMES, Arm, Study, Task
from .training_defaults import VALUE_LEARNING_RATES

__all__ = [
    "ARM_NAMES",
    "CRITIC_KEYS",
    "KL",
    "KLS_OF_EVALUATIONS",
    "KLS_OF_TRAINING",
    "PPO",
    "VALUE_LEARNING_RATES",
    "Advantage",
    "AnyRecipe",
    "Arm",
    "ArmChoice",
    "BadRows",
    "Claim",
    "ClaimPart",
    "Contrast",
    "Data",
    "Engine",
    "EnvironmentChoice",
    "Evaluation",
    "KeyDocumentation",
    "LogNames",
    "Lora",
    "Loss",
    "LossKL",
    "LossName",
    "Model",
    "Online",
    "OnlineRecipe",
    "Optimizing",
    "OwnResponsesRecipe",
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
    "ReferenceUpdate",
    "RepeatedRows",
    "Reward",
    "Rollouts",
    "Sampling",
    "SamplingEngine",
    "Section",
    "Study",
    "Task",
    "Training",
    "TurnsToCount",
    "arm_choice",
    "built_in_claims",
    "documented_keys",
    "dump_recipe",
    "dump_study",
    "engine_problems",
    "flatten",
    "group_obstacle",
    "load_recipe",
    "load_study",
    "markdown_table",
    "nearest_key",
    "only_in_online",
    "only_in_ppo",
    "only_in_studies",
    "pairs_of_a_prompt",
    "read_yaml",
    "recipe_markdown",
    "reference_update_problems",
    "why_no_average",
    "why_no_pairs",
    "why_no_temperature",
    "why_no_weights",
    "why_not_handed_over",
    "without_effect_on_distilling",
    "write_yaml",
]
