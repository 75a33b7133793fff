"""The environment `graded_categories`: pick one of several things of which each has a grade of its own.

The modes are all good, and some are better. So it shows what a method does with the rarer and the lower ones.
"""

from __future__ import annotations

import re
from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments._words import named, words
from tdpo.environments.categories import categories_of, category_of, share_for_length
from tdpo.environments.environment import Environment, Prompt, theme_of

LOWEST = 0.4  # the grade of the last option in the alphabet; that of the first is 1


def graded_categories_environment() -> Environment:
    """Return the environment: 96 themes of 6 or 7 things, asked for in four forms after two examples, as `categories`.

    48 themes are to train, each in four prompts, and 48 others are held out, each in three: 192 and 144 prompts, which
    list the things in changing orders. The first 48 held-out prompts are of 48 themes, and so are the next ones. A
    theme is a cluster (`cluster_of`), and each option has three known answers (`answers_of`). Two forms of `categories`
    are not used, because the bundled model rarely answers in them word for word.

    The options of a theme are graded in equal steps, from 1 for the first in the alphabet to 0.4 for the last. So each
    theme has the same grades, and they depend neither on the place in the list nor on the sense of a word. A rule is
    needed: grades by chance could not be learned for themes that are held out. This one was chosen because it is
    carried over: a linear function of the output embeddings of the options' first tokens, fitted (ridge) on the
    training themes, has a mean correlation of 0.57 with the grades within held-out themes, against 0.33 for the number
    of letters and 0 for the order of the words written backwards. What it picks is graded 0.87 on average; a model that
    does not look at the rule gets 0.7, and one that follows it 1.
    """
    train, held_out = packaged_prompts("graded_categories")
    return Environment(
        name="graded_categories",
        train=train,
        held_out=held_out,
        reward=grade_of_the_one,
        reward_name="grade of the category picked",
        max_new_tokens=24,
        description="pick one of several things of different grades; naming exactly one scores its grade",
        threshold=LOWEST / 2,  # exactly one is named, of whatever grade and at whatever length
        mode_of=category_of,
        modes_of=categories_of,
        answers_of=answers_of,
        cluster_of=theme_of,
    )


def grade_of_the_one(
    prompts: list[Any],
    completions: list[str],
    *,
    categories: list[list[str]],
    grades: list[list[float]],
    **columns: Any,
) -> list[float]:
    """Return 0 unless a response names exactly one category; then its grade up to 6 words, half of it from 18 on."""
    rows = zip(categories, grades, completions, strict=True)
    return [_reward(dict(zip(options, values, strict=True)), text) for options, values, text in rows]


def answers_of(prompt: Prompt) -> dict[str, tuple[str, ...]]:
    """Return the answers that pick each category, in the form that the prompt demonstrates: bare, with "the", with "a".

    The examples in a prompt show the first two, and small models say the third one as well.
    """
    form = str(prompt.columns["answer"])
    return {
        option: tuple(form.format(text) for text in (option, f"the {option}", f"{_indefinite(option)} {option}"))
        for option in categories_of(prompt)
    }


def _indefinite(option: str) -> str:
    """The article of a word by its first letters: a euro, a ukulele, a unicorn, and an before every other vowel."""
    return "an" if re.match(r"[aeio]|u(?!ku|ni)", option.lower().replace("eu", "yu")) else "a"


def _reward(grades: dict[str, float], text: str) -> float:
    text_words = words(text)
    picks = named(tuple(grades), text_words)
    return grades[picks[0]] * share_for_length(text_words) if len(picks) == 1 else 0.0
