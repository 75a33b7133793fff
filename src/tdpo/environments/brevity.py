"""The environment `brevity`: everyday questions to answer in a few words. Every further word costs reward."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import distinct_share, is_complete, named, words
from tdpo.environments.environment import Environment

FEWEST, FEW, MANY = 3, 6, 24  # words: fewer than FEWEST say nothing; up to FEW cost nothing; MANY earn nothing


def brevity_environment() -> Environment:
    """Return the environment: 136 questions of our own (96 to train, 40 held out) with the reward `few_words`."""
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
    """Return 1 for a response of 3 to 6 words that names the topic, and 0 for one that does not name it.

    From 6 to 24 words the reward falls linearly to 0. It is quartered if nothing is answered: fewer than 3 words, only
    the words of the question, a question in return, or repetition. It is halved if a response of at least 3 words has
    no end.
    """
    return [_brevity(p, about, text) for p, about, text in zip(prompts, topic, completions, strict=True)]


def _brevity(prompt: Any, topic: str, text: str) -> float:
    text_words = words(text)
    if not named((topic,), text_words):
        return 0.0
    value = min(max((MANY - len(text_words)) / (MANY - FEW), 0.0), 1.0)
    question = set(words(prompt if isinstance(prompt, str) else str(prompt[-1]["content"])))
    says_nothing = len(text_words) < FEWEST or question.issuperset(text_words) or text.rstrip().endswith("?")
    if says_nothing or distinct_share(text_words) < 0.7:
        return value / 4
    return value if is_complete(text) else value / 2
