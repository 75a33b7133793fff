"""Words, sentences and syllables of short English answers: what the rewards of the built-in environments count."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^laeiouy]e|[^tdaeiouy]ed|[^cgsxzhaeiouy]es)$")


def words(text: str) -> list[str]:
    """The words in lower case, without numbers and punctuation; a possessive ('s) is the word itself."""
    return [re.sub(r"['’]s$", "", word) for word in _WORD.findall(text.lower())]


def sentences(text: str) -> int:
    """Sentences, the last one counted also where its full stop is missing; 0 for a text without words."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def is_complete(text: str) -> bool:
    """Whether the text ends as a sentence does; an answer that was cut off at the token limit rarely does."""
    return re.search(r"[.!?][\"'”’)]*\s*$", text) is not None


def distinct_share(found: list[str]) -> float:
    """Different words among all, in (0, 1]; 0 without words."""
    return len(set(found)) / len(found) if found else 0.0


def syllables(word: str) -> int:
    """About how many syllables an English word has: its groups of vowels, less a silent e, at least one."""
    groups = len(_VOWELS.findall(word))
    return max(1, groups - bool(_SILENT.search(word)))


def reading_ease(text: str, *, shortest_sentence: int = 1) -> float:
    """Flesch's reading ease (Flesch 1948): 206.835 - 1.015 words/sentences - 84.6 syllables/words; about 100 for a
    very easy text and 0 for a very hard one.

    Sentences shorter on average than `shortest_sentence` words count as that long: chopping a text up gains nothing
    from there on. Raises ValueError for a text without words.
    """
    found = words(text)
    if not found:
        raise ValueError("a text without words has no reading ease")
    length = max(len(found) / sentences(text), shortest_sentence)
    return 206.835 - 1.015 * length - 84.6 * sum(map(syllables, found)) / len(found)


def forms(word: str) -> frozenset[str]:
    """The word with the simple endings of English (-s, -es, -ed, -ing, with y, e and doubled consonants), lower case.

    Some of them are no words ("goated"); no other word's meaning is reached with them.
    """
    word = word.lower()
    stems = {word}
    if re.search(r"[^aeiou][aeiou][^aeiouwxy]$", word):
        stems.add(word + word[-1])  # stop, stopped
    found = {word, f"{word}s", f"{word}es"}
    if re.search(r"[^aeiou]y$", word):
        found |= {f"{word[:-1]}ies", f"{word[:-1]}ied"}
    for stem in stems:
        found |= {f"{stem}ed", f"{stem}ing"}
    if word.endswith("fe"):
        found.add(f"{word[:-2]}ves")  # knife, knives
    elif word.endswith("f"):
        found.add(f"{word[:-1]}ves")  # leaf, leaves
    if word.endswith("e"):
        found |= {f"{word}d", f"{word[:-1]}ing"}
    return frozenset(found)


def named(candidates: tuple[str, ...], found: list[str]) -> tuple[str, ...]:
    """Those of `candidates` (single words) that occur among the words `found`, in any of their forms."""
    present = set(found)
    return tuple(candidate for candidate in candidates if not present.isdisjoint(forms(candidate)))
