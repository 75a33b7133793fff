"""The environment `keywords`: use three given words in one sentence. The reward counts the words that are used."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import distinct_share, forms, is_complete, named, sentences, words
from tdpo.environments.environment import Environment

SHORTEST, LONGEST = 5, 30  # words of a sentence that is neither a bare list nor a story
_LIST_WORDS = frozenset(["a", "an", "the", "and", "or"])


def keywords_environment() -> Environment:
    """Return the environment: 136 triples of everyday words (96 to train, 40 held out), reward `keyword_share`."""
    train, held_out = packaged_prompts("keywords")
    return Environment(
        name="keywords",
        train=train,
        held_out=held_out,
        reward=keyword_share,
        reward_name="share of keywords used in one sentence",
        max_new_tokens=32,
        description="use three given words in one sentence; each word that is used scores",
        threshold=0.66,  # two of the three words, in a sound sentence
    )


def keyword_share(
    prompts: list[Any], completions: list[str], *, keywords: list[list[str]], **columns: Any
) -> list[float]:
    """Return the share of the keywords that a response uses, in [0, 1]. Plurals and forms with -ed or -ing count.

    The reward is halved for each of these: not exactly one sentence, no end, too short or too long, much repetition. It
    is quartered if the words are only listed. So a list of all three earns at most a quarter, less than a sentence with
    one of them.
    """
    return [_share(tuple(required), text) for required, text in zip(keywords, completions, strict=True)]


def _share(required: tuple[str, ...], text: str) -> float:
    text_words = words(text)
    keywords = named(required, text_words)
    value = len(keywords) / len(required)
    value *= 0.25 if _only_lists(keywords, text_words) else 1.0
    value *= 1.0 if sentences(text) == 1 else 0.5
    value *= 1.0 if is_complete(text) else 0.5
    value *= 1.0 if SHORTEST <= len(text_words) <= LONGEST else 0.5
    return value * (1.0 if distinct_share(text_words) >= 0.6 else 0.5)


def _only_lists(keywords: tuple[str, ...], text_words: list[str]) -> bool:
    """Return whether there is hardly a word beside the keywords, or three of them follow one another as in a list."""
    every_form = frozenset().union(*map(forms, keywords))
    content = [word for word in text_words if word not in _LIST_WORDS]
    if len([word for word in content if word not in every_form]) < 2:
        return True
    is_keyword = [word in every_form for word in content]
    return any(all(is_keyword[i : i + 3]) for i in range(len(content) - 2))
