"""A reward for alliteration: the share of the words that begin with the letter that the prompt names."""

import re


def alliteration(prompts, completions, *, letter, **columns):
    """Return a number in [0, 1] for each completion. `letter` is a column of the prompts, one value per completion.

    Every word counts once, so that repeating a word gains nothing. A text of fewer than five different words counts as
    one of five.
    """
    return [share_of_words(initial, text) for initial, text in zip(letter, completions, strict=True)]


def share_of_words(letter, text):
    words = set(re.findall(r"[a-z]+", text.lower()))
    matching = [word for word in words if word.startswith(letter)]
    return len(matching) / max(len(words), 5)
