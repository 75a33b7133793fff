"""The environment `plain_language`: things to explain simply. A response that is easier to read earns more reward."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import distinct_share, is_complete, named, reading_ease, words
from tdpo.environments.environment import Environment

ENOUGH = 8  # words; a shorter response explains less, and shorter sentences are not easier


def plain_language_environment() -> Environment:
    """Return the environment: 136 things to explain (96 to train, 40 held out) with the reward `plain_words`."""
    train, held_out = packaged_prompts("plain_language")
    return Environment(
        name="plain_language",
        train=train,
        held_out=held_out,
        reward=plain_words,
        reward_name="reading ease, 0 to 1",
        max_new_tokens=32,
        description="explain a thing in one plain sentence; an answer that is easier to read scores higher",
        threshold=0.6,  # plain English, as newspapers for everybody write it
    )


def plain_words(prompts: list[Any], completions: list[str], *, topic: list[str], **columns: Any) -> list[float]:
    """Return Flesch's reading ease of a response, divided by 100 and clipped to [0, 1].

    The reward is 0 if the response does not name the topic. Below 8 words it is reduced in proportion. It is halved
    without an end, and quartered if words repeat (less than 70 % different).
    """
    return [_plainness(about, text) for about, text in zip(topic, completions, strict=True)]


def _plainness(topic: str, text: str) -> float:
    text_words = words(text)
    if not named((topic,), text_words):
        return 0.0
    value = min(max(reading_ease(text, shortest_sentence=ENOUGH) / 100, 0.0), 1.0)
    value *= min(len(text_words) / ENOUGH, 1.0) if len(text_words) > 1 else 0.0
    value *= 1.0 if is_complete(text) else 0.5
    return value * (1.0 if distinct_share(text_words) >= 0.7 else 0.25)
