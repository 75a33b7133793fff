"""One thing to pick out of several that are equally good: how many of the answers a model keeps can be counted."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import named, words
from tdpo.environments.base import Environment, Prompt

FEW, MANY = 6, 18  # words of an answer that cost nothing, and from which on half of the reward is gone


def categories_environment() -> Environment:
    """34 themes of 6 or 7 things, each in four prompts that offer them in another order (24 themes, 96 prompts to
    train; 10 themes, 40 prompts held out); reward: `one_of_them`, the same for whichever is picked."""
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
    )


def one_of_them(
    prompts: list[Any], completions: list[str], *, categories: list[list[str]], **columns: Any
) -> list[float]:
    """0 unless exactly one category is named, whichever; then 1 up to 6 words, falling in a line to 0.5 at 18."""
    return [_reward(tuple(offered), text) for offered, text in zip(categories, completions, strict=True)]


def category_of(prompt: Prompt, completion: str) -> str | None:
    """The category that a response to this prompt picks; None where it names none or several."""
    found = named(categories_of(prompt), words(completion))
    return found[0] if len(found) == 1 else None


def categories_of(prompt: Prompt) -> tuple[str, ...]:
    """The categories that a prompt offers, in the prompt's order."""
    return tuple(prompt.columns["categories"])


def _reward(offered: tuple[str, ...], text: str) -> float:
    found = words(text)
    if len(named(offered, found)) != 1:
        return 0.0
    return 1.0 - 0.5 * min(max((len(found) - FEW) / (MANY - FEW), 0.0), 1.0)
