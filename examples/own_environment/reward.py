"""Alliteration: how many of the words begin with the letter that the prompt asks for."""

import re


def alliteration(prompts, completions, *, letter, **columns):
    """A number in [0, 1] for each completion; `letter` is a column of the prompts, one value a completion.

    Every word counts once, so that saying one word again and again gains nothing, and five different words are the
    least that counts as a sentence.
    """
    return [share_of_words(wanted, text) for wanted, text in zip(letter, completions, strict=True)]


def share_of_words(letter, text):
    words = set(re.findall(r"[a-z]+", text.lower()))
    matching = [word for word in words if word.startswith(letter)]
    return len(matching) / max(len(words), 5)
