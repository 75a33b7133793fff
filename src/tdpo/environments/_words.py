"""Words, sentences and syllables of short English responses, which the rewards of the built-in environments count."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^laeiouy]e|[^tdaeiouy]ed|[^cgsxzhaeiouy]es)$")


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without numbers, punctuation and possessive endings ('s)."""
    return [re.sub(r"['’]s$", "", word) for word in _WORD.findall(text.lower())]


def sentences(text: str) -> int:
    """Count the sentences of `text`. The last one counts without a full stop too; a text without words has none."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def is_complete(text: str) -> bool:
    """Return whether the text ends as a sentence does. A response that was cut off at the token limit rarely does."""
    return re.search(r"[.!?][\"'”’)]*\s*$", text) is not None


def distinct_share(text_words: list[str]) -> float:
    """Return the number of different words divided by the number of words, in (0, 1]; 0 without words."""
    return len(set(text_words)) / len(text_words) if text_words else 0.0


def syllables(word: str) -> int:
    """Estimate the syllables of an English word: its groups of vowels, minus a silent e, and at least one."""
    groups = len(_VOWELS.findall(word))
    return max(1, groups - bool(_SILENT.search(word)))


def reading_ease(text: str, *, shortest_sentence: int = 1) -> float:
    """Return Flesch's reading ease (Flesch 1948): 206.835 - 1.015 words/sentences - 84.6 syllables/words.

    It is about 100 for a very easy text and 0 for a very hard one. A mean sentence length below `shortest_sentence`
    words counts as that length, so that chopping a text into shorter sentences gains nothing. Raises ValueError for a
    text without words.
    """
    text_words = words(text)
    if not text_words:
        raise ValueError("a text without words has no reading ease")
    length = max(len(text_words) / sentences(text), shortest_sentence)
    return 206.835 - 1.015 * length - 84.6 * sum(map(syllables, text_words)) / len(text_words)


def forms(word: str) -> frozenset[str]:
    """Return the word in lower case with the simple English endings: -s, -es, -ed, -ing, with y, e, doubled consonants.

    Some of the forms are not words ("goated"), but none is a form of another word.
    """
    word = word.lower()
    stems = {word}
    if re.search(r"[^aeiou][aeiou][^aeiouwxy]$", word):
        stems.add(word + word[-1])  # stop, stopped
    all_forms = {word, f"{word}s", f"{word}es"}
    if re.search(r"[^aeiou]y$", word):
        all_forms |= {f"{word[:-1]}ies", f"{word[:-1]}ied"}
    for stem in stems:
        all_forms |= {f"{stem}ed", f"{stem}ing"}
    if word.endswith("fe"):
        all_forms.add(f"{word[:-2]}ves")  # knife, knives
    elif word.endswith("f"):
        all_forms.add(f"{word[:-1]}ves")  # leaf, leaves
    if word.endswith("e"):
        all_forms |= {f"{word}d", f"{word[:-1]}ing"}
    return frozenset(all_forms)


def named(candidates: tuple[str, ...], text_words: list[str]) -> tuple[str, ...]:
    """Return those of `candidates` (single words) that occur among `text_words`, in any of their forms."""
    present = set(text_words)
    return tuple(candidate for candidate in candidates if not present.isdisjoint(forms(candidate)))
