"""The environment `categories`: pick one of several things that are equally good, its modes.

How many of the modes a model keeps can be counted.
"""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import named, words
from tdpo.environments.environment import Environment, Prompt, theme_of

FEW, MANY = 6, 18  # words: up to FEW cost nothing; from MANY on half of the reward is gone


def categories_environment() -> Environment:
    """Return the environment: 34 themes of 6 or 7 things, each in four prompts that list the things in another order.

    24 themes are to train (96 prompts) and 10 held out (40 prompts). The reward `one_of_them` is the same for each
    thing.
    """
    train, held_out = packaged_prompts("categories")
    return Environment(
        name="categories",
        train=train,
        held_out=held_out,
        reward=one_of_them,
        reward_name="exactly one category picked",
        max_new_tokens=24,
        description="pick one of several things that are equally good; naming exactly one of them scores",
        threshold=0.5,  # exactly one is named, at whatever length
        mode_of=category_of,
        modes_of=categories_of,
        cluster_of=theme_of,
    )


def one_of_them(
    prompts: list[Any], completions: list[str], *, categories: list[list[str]], **columns: Any
) -> list[float]:
    """Return 0 unless a response names exactly one category; then 1 up to 6 words, falling linearly to 0.5 at 18."""
    return [_reward(tuple(options), text) for options, text in zip(categories, completions, strict=True)]


def category_of(prompt: Prompt, response: str) -> str | None:
    """Return the category that a response to this prompt picks; None if it names none or several."""
    picks = named(categories_of(prompt), words(response))
    return picks[0] if len(picks) == 1 else None


def categories_of(prompt: Prompt) -> tuple[str, ...]:
    """Return the categories that a prompt offers, in the prompt's order."""
    return tuple(prompt.columns["categories"])


def _reward(options: tuple[str, ...], text: str) -> float:
    text_words = words(text)
    if len(named(options, text_words)) != 1:
        return 0.0
    return share_for_length(text_words)


def share_for_length(text_words: list[str]) -> float:
    """Return the share of the reward that a response of so many words keeps: 1 up to FEW, 0.5 from MANY on."""
    return 1.0 - 0.5 * min(max((len(text_words) - FEW) / (MANY - FEW), 0.0), 1.0)
