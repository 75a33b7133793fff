"""How much texts differ from one another. Pure Python."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the texts (Li et al. 2016, arXiv 1510.03055), in (0, 1].

    n-grams of words, in lower case and without punctuation, never across two texts. None where no text has n words:
    there is nothing to be diverse. The share falls with the amount of text, so compare equal amounts only.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    grams = [gram for text in texts for gram in _ngrams(_WORD.findall(text.lower()), n)]
    return len(set(grams)) / len(grams) if grams else None


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
