"""`graded_categories`: its themes, its grades, the answers that are known, and the reward."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from tdpo.environments import Environment, Prompt, load_environment, score
from tdpo.environments._words import forms, words
from tdpo.environments.graded_categories import answers_of

ANIMALS = {"goat": 0.88, "owl": 0.52, "whale": 0.4, "spider": 0.64, "fox": 1.0, "horse": 0.76}


@pytest.fixture(scope="module")
def graded() -> Environment:
    return load_environment("graded_categories")


def turns(prompt: Prompt) -> list[str]:
    return [message["content"] for message in prompt.prompt if isinstance(message, dict)]


def options_by_theme(prompts: list[Prompt]) -> dict[str, set[str]]:
    options: dict[str, set[str]] = {}
    for prompt in prompts:
        options.setdefault(prompt.columns["theme"], set()).update(map(str.lower, prompt.columns["categories"]))
    return options


def test_themes_are_balanced_and_no_held_out_theme_is_trained_on(graded: Environment) -> None:
    train, held_out = (Counter(map(graded.cluster_of, split)) for split in (graded.train, graded.held_out))
    assert (len(train), set(train.values())) == (48, {4})
    assert (len(held_out), set(held_out.values())) == (48, {3})
    assert not train.keys() & held_out.keys()
    one, other = options_by_theme(graded.train), options_by_theme(graded.held_out)
    assert not set().union(*one.values()) & set().union(*other.values()), "nor a held-out option"


def test_the_first_prompts_are_of_different_themes(graded: Environment) -> None:
    for split in (graded.train, graded.held_out):
        for start in range(0, len(split), 48):
            assert len(set(map(graded.cluster_of, split[start : start + 48]))) == 48
    assert Counter(prompt.columns["answer"] for prompt in graded.held_out[:40]).most_common()[-1][1] >= 9


def test_no_prompt_occurs_twice(graded: Environment) -> None:
    prompts = graded.train + graded.held_out
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 336
    assert len({turns(prompt)[-1] for prompt in prompts}) == len(prompts)
    orders = [tuple(graded.modes_of(prompt)) for prompt in prompts]
    assert len(set(orders)) == len(orders)


def test_options_cannot_be_taken_for_one_another(graded: Environment) -> None:
    for theme, options in options_by_theme(graded.train + graded.held_out).items():
        assert 6 <= len(options) <= 7 and all(len(words(option)) == 1 for option in options)
        for one, other in combinations(sorted(options), 2):
            assert one not in other and other not in one, (theme, one, other)
            assert forms(one).isdisjoint(forms(other)), (theme, one, other)


def test_the_question_lists_the_options_and_the_examples_none_of_them(graded: Environment) -> None:
    for prompt in graded.train + graded.held_out:
        options = [option.lower() for option in graded.modes_of(prompt)]
        assert len(turns(prompt)) == 5
        assert [word for word in words(turns(prompt)[-1]) if word in options] == options
        shown = words(" ".join(turns(prompt)[:-1]))
        assert all(forms(option).isdisjoint(shown) for option in options), prompt.id


def test_every_theme_has_the_same_grades_in_the_order_of_the_alphabet(graded: Environment) -> None:
    for prompt in graded.train + graded.held_out:
        grade_of = dict(zip(graded.modes_of(prompt), prompt.columns["grades"], strict=True))
        in_order = [grade_of[option] for option in sorted(grade_of, key=str.casefold)]
        steps = len(in_order) - 1
        assert in_order == [pytest.approx(1 - 0.6 * at / steps, abs=1e-4) for at in range(steps + 1)]


def test_the_place_in_the_list_says_nothing_about_the_grade(graded: Environment) -> None:
    prompts = graded.train + graded.held_out
    for place in range(6):
        mean = sum(prompt.columns["grades"][place] for prompt in prompts) / len(prompts)
        assert mean == pytest.approx(0.7, abs=0.04), place  # three standard errors of 336 draws


def test_known_answers_earn_the_grade_of_their_mode(graded: Environment) -> None:
    assert graded.mode_of is not None and graded.threshold is not None
    for prompt in graded.train + graded.held_out:
        answers = graded.answers_of(prompt)
        assert tuple(answers) == graded.modes_of(prompt)
        demonstrated = turns(prompt)[-2]
        for (mode, texts), grade in zip(answers.items(), prompt.columns["grades"], strict=True):
            assert len(set(texts)) == 3 and score(graded, [prompt] * 3, list(texts)) == [grade] * 3
            assert [graded.mode_of(prompt, text) for text in texts] == [mode] * 3
            assert texts[0].partition(mode)[0] == demonstrated[: len(texts[0].partition(mode)[0])]
        assert graded.threshold <= min(prompt.columns["grades"]) / 2


def test_answers_have_the_article_that_belongs_to_the_word() -> None:
    columns = {"categories": ["owl", "euro", "unicorn", "crate"], "answer": "I pick {}."}
    answers = answers_of(Prompt("p", "a question", columns))
    assert [texts[-1] for texts in answers.values()] == [
        "I pick an owl.", "I pick a euro.", "I pick a unicorn.", "I pick a crate."
    ]  # fmt: skip
    assert answers["owl"][:2] == ("I pick owl.", "I pick the owl.")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("I pick the owl.", 0.52),
        ("Foxes!", 1.0),
        ("If you ask me then my choice will always be the whale.", 0.4 * 0.75),  # 12 words
        ("The whale, " + "as I have said " * 5, 0.2),  # above the threshold still: one is named
        ("An owl or a goat.", 0.0),
        ("I pick the cat.", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward(completion: str, expected: float, graded: Environment) -> None:
    prompt = Prompt("p", "a question", {"categories": list(ANIMALS), "grades": list(ANIMALS.values())})
    assert score(graded, [prompt], [completion]) == [pytest.approx(expected)]
