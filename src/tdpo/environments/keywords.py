"""Three words to use in one sentence; the more of them are used, and in a real sentence, the higher the reward."""

from __future__ import annotations

from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import distinct_share, forms, is_complete, named, sentences, words
from tdpo.environments.base import Environment

SHORTEST, LONGEST = 5, 30  # words of a sentence that is neither a bare list nor a story
_LIST_WORDS = frozenset(["a", "an", "the", "and", "or"])


def keywords_environment() -> Environment:
    """136 triples of everyday words of our own (96 to train, 40 held out); reward: `keyword_share`."""
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
    """Share of the keywords that a completion uses, in [0, 1]; also as a plural or with -ed or -ing.

    Halved for each of: not exactly one sentence, no end, too short or too long, much repetition. Quartered where the
    words are only listed. So a list of all three is worth at most a quarter, less than a sentence with one of them.
    """
    return [_share(tuple(wanted), text) for wanted, text in zip(keywords, completions, strict=True)]


def _share(wanted: tuple[str, ...], text: str) -> float:
    found = words(text)
    used = named(wanted, found)
    value = len(used) / len(wanted)
    value *= 0.25 if _only_lists(used, found) else 1.0
    value *= 1.0 if sentences(text) == 1 else 0.5
    value *= 1.0 if is_complete(text) else 0.5
    value *= 1.0 if SHORTEST <= len(found) <= LONGEST else 0.5
    return value * (1.0 if distinct_share(found) >= 0.6 else 0.5)


def _only_lists(used: tuple[str, ...], found: list[str]) -> bool:
    """Whether hardly anything is said beside the words, or three of them follow one another as in a list."""
    every_form = frozenset().union(*map(forms, used))
    said = [word for word in found if word not in _LIST_WORDS]
    if len([word for word in said if word not in every_form]) < 2:
        return True
    is_keyword = [word in every_form for word in said]
    return any(all(is_keyword[i : i + 3]) for i in range(len(said) - 2))
