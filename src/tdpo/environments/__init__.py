"""Environments: prompts with a reward. Pairs and rollouts are sampled from them, and models are judged on them."""

from __future__ import annotations

import difflib

from tdpo.environments.brevity import brevity_environment
from tdpo.environments.categories import categories_environment
from tdpo.environments.environment import (
    Environment,
    Prompt,
    PromptReward,
    RewardError,
    RewardFunction,
    check_reward,
    score,
)
from tdpo.environments.function_loading import FunctionError, load_function
from tdpo.environments.graded_categories import graded_categories_environment
from tdpo.environments.keywords import keywords_environment
from tdpo.environments.own import own_environment
from tdpo.environments.plain_language import plain_language_environment
from tdpo.environments.prompt_drawing import drawn_prompts
from tdpo.environments.prompt_files import PromptFile, check_prompt_rows, load_prompts, read_prompts
from tdpo.environments.repeated_prompts import seen_prompts
from tdpo.environments.sentiment import sentiment_environment

_BUILT_IN = {
    "sentiment": sentiment_environment,
    "keywords": keywords_environment,
    "plain_language": plain_language_environment,
    "brevity": brevity_environment,
    "categories": categories_environment,
    "graded_categories": graded_categories_environment,
}
BUILT_IN = tuple(_BUILT_IN)

__all__ = [
    "BUILT_IN",
    "Environment",
    "FunctionError",
    "Prompt",
    "PromptFile",
    "PromptReward",
    "RewardError",
    "RewardFunction",
    "check_prompt_rows",
    "check_reward",
    "drawn_prompts",
    "load_environment",
    "load_function",
    "load_prompts",
    "own_environment",
    "read_prompts",
    "score",
    "seen_prompts",
]


def load_environment(name: str) -> Environment:
    """Return the built-in environment called `name`.

    Raises ValueError for an unknown name, and ModuleNotFoundError if a package is missing that the reward needs.
    """
    if name not in _BUILT_IN:
        near = difflib.get_close_matches(name, _BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no environment {name!r}: {hint}known environments: {', '.join(sorted(_BUILT_IN))}")
    return _BUILT_IN[name]()
