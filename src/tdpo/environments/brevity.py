"""Everyday questions to answer in a few words; words beyond a few cost reward."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import distinct_share, is_complete, named, words
from tdpo.environments.base import Environment

FEWEST, FEW, MANY = 3, 6, 24  # words: fewer say nothing; up to FEW cost nothing; MANY are worth nothing


def brevity_environment() -> Environment:
    """136 questions of our own (96 to train, 40 held out); reward: `few_words`."""
    train, held_out = packaged_prompts("brevity")
    return Environment(
        name="brevity",
        train=train,
        held_out=held_out,
        reward=few_words,
        reward_name="brevity, topic named",
        max_new_tokens=32,
        description="answer in a few words and name the topic; every word beyond six costs",
        threshold=0.7,  # up to eleven words
    )


def few_words(prompts: list[Any], completions: list[str], *, topic: list[str], **columns: Any) -> list[float]:
    """1 for an answer of 3 to 6 words that names the topic, falling in a line to 0 at 24 words; 0 without the topic.

    Quartered where nothing is answered: fewer than 3 words, the question's own words only, a question in return, or
    repetition. Halved where the answer of at least 3 words has no end.
    """
    return [_brevity(p, about, text) for p, about, text in zip(prompts, topic, completions, strict=True)]


def _brevity(prompt: Any, topic: str, text: str) -> float:
    found = words(text)
    if not named((topic,), found):
        return 0.0
    value = min(max((MANY - len(found)) / (MANY - FEW), 0.0), 1.0)
    asked = set(words(prompt if isinstance(prompt, str) else str(prompt[-1]["content"])))
    if len(found) < FEWEST or asked.issuperset(found) or text.rstrip().endswith("?") or distinct_share(found) < 0.7:
        return value / 4
    return value if is_complete(text) else value / 2
