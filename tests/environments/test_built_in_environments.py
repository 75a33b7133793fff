"""The built-in environments beside `sentiment`: their prompts, and rewards computed by hand, games included."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.environments import BUILT_IN, Environment, Prompt, load_environment, score
from tdpo.environments._words import forms, is_complete, reading_ease, sentences, syllables, words

NAMES = ("keywords", "plain_language", "brevity", "categories")
LISTED = (["goat", "fence", "carrot"], "Use all of these words in one sentence: goat, fence, carrot.")
ANIMALS = ["goat", "owl", "whale", "spider", "horse", "fox"]


def last_turn(prompt: Prompt) -> str:
    return str(prompt.prompt[-1]["content"])


def reward(name: str, completion: str, prompt: str = "a question", **columns: Any) -> float:
    messages = [{"role": "user", "content": prompt}]
    return score(load_environment(name), [Prompt("p", messages, columns)], [completion])[0]


def test_all_are_known_by_name() -> None:
    assert set(BUILT_IN) == {"sentiment", "graded_categories", *NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_shape(name: str) -> None:
    found = load_environment(name)
    prompts = found.train + found.held_out
    assert found.name == name and found.description and found.reward_name
    assert (len(found.train), len(found.held_out)) == (96, 40)
    assert len({prompt.id for prompt in prompts}) == 136
    assert 24 <= found.max_new_tokens <= 32
    assert found.threshold is not None and 0 < found.threshold <= 1
    for prompt in prompts:
        roles = [message["role"] for message in prompt.prompt]
        assert roles == (["user", "assistant"] * 2 + ["user"])[-len(roles) :]
        assert all(len(message["content"]) < 120 for message in prompt.prompt)
        assert last_turn(prompt).endswith((".", "?")) and "  " not in last_turn(prompt)


def content_words(name: str, prompt: Prompt) -> set[str]:
    """What a prompt is about: its column, and in `brevity` the words of its question too."""
    if name == "brevity":
        request = "answer in one short sentence a please be brief keep it very few words what is the do does how of i"
        return set(words(last_turn(prompt))) - set(request.split())
    column = {"keywords": "keywords", "plain_language": "topic", "categories": "categories"}[name]
    value = prompt.columns[column]
    return {value} if isinstance(value, str) else set(value)


@pytest.mark.parametrize("name", NAMES)
def test_no_held_out_prompt_is_nearly_one_to_train_on(name: str) -> None:
    found = load_environment(name)
    for held_out in found.held_out:
        for train in found.train:
            one, other = content_words(name, held_out), content_words(name, train)
            assert len(one & other) / len(one | other) <= 0.34, (last_turn(held_out), last_turn(train))


@pytest.mark.parametrize("name", ["keywords", "plain_language", "brevity"])
def test_no_prompt_is_nearly_another(name: str) -> None:
    found = load_environment(name)
    for one, other in combinations(found.train + found.held_out, 2):
        a, b = content_words(name, one), content_words(name, other)
        assert len(a & b) / len(a | b) <= 0.5, (last_turn(one), last_turn(other))


@pytest.mark.parametrize("name", ["keywords", "plain_language", "brevity"])
def test_prompts_name_what_the_reward_looks_for(name: str) -> None:
    found = load_environment(name)
    for prompt in found.train + found.held_out:
        wanted = prompt.columns["keywords"] if name == "keywords" else [prompt.columns["topic"]]
        assert all(not forms(word).isdisjoint(words(last_turn(prompt))) for word in wanted), prompt


def test_the_examples_inside_prompts_are_worth_full_marks_and_reveal_nothing() -> None:
    """An exchange before the question shows the form of an answer; it is about something else."""
    found = load_environment("keywords")
    for prompt in found.train + found.held_out:
        answer = prompt.prompt[1]["content"]
        assert sentences(answer) == 1 and is_complete(answer)
        assert all(forms(word).isdisjoint(words(answer)) for word in prompt.columns["keywords"]), prompt
    for prompt in load_environment("categories").train:
        shown = words(" ".join(message["content"] for message in prompt.prompt[:-1]))
        assert all(forms(word).isdisjoint(shown) for word in prompt.columns["categories"]), prompt


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The goat ate the carrot beside the fence.", 1.0),
        ("The GOAT’s carrot fell by the fence!", 1.0),
        ("Two goats jumped over both fences.", 2 / 3),
        ("Nobody here ever saw a goat.", 1 / 3),
        ("The goatee of my uncle is long.", 0.0),
        ("The goat ate it. The carrot was by the fence.", 0.5),  # two sentences
        ("The goat ate the carrot beside the fence", 0.5),  # no end
        ("Goat ate fence, carrot.", 0.125),  # 4 words, and hardly any beside the keywords
        ("goat, fence, carrot", 0.0625),  # a list, no end, too short
        ("Here they are for you: a goat, a fence and a carrot.", 0.25),  # a list with words around it
        (LISTED[1], 0.25),
        ("goat goat goat ran ran to fence fence fence carrot carrot.", 0.125),
        ("The goat ate the carrot by the fence " + "and so on and on then they slept well " * 3 + "there.", 0.25),
        ("", 0.0),
        (" \n", 0.0),
        ("🐐🥕", 0.0),
        ("Коза съела морковь у забора.", 0.0),
    ],
)
def test_keywords(completion: str, expected: float) -> None:
    assert reward("keywords", completion, LISTED[1], keywords=LISTED[0]) == pytest.approx(expected)


def test_listing_every_keyword_pays_less_than_a_sentence_with_one() -> None:
    games = ["goat, fence, carrot", "A goat, a fence and a carrot.", "goat fence carrot. " * 3, LISTED[1]]
    honest = reward("keywords", "I once had a goat of my own.", keywords=LISTED[0])
    assert all(reward("keywords", game, keywords=LISTED[0]) < honest for game in games)


def test_inflections() -> None:
    assert forms("stop") >= {"stop", "stops", "stopped", "stopping"}
    assert forms("bake") >= {"bakes", "baked", "baking"}
    assert forms("carry") >= {"carries", "carried", "carrying"}
    assert forms("Play") >= {"play", "plays", "played"}
    assert forms("box") >= {"boxes"} and forms("leaf") >= {"leaves"} and forms("knife") >= {"knives"}


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("table", 2), ("make", 1), ("makes", 1), ("walked", 1), ("wanted", 2), ("evaporation", 5),
     ("horses", 2), ("people", 2), ("the", 1), ("hmm", 1), ("banana", 3)],
)  # fmt: skip
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_reading_ease_is_fleschs() -> None:
    # Six words of one syllable in one sentence: 206.835 - 6.09 - 84.6, the 116 that is often quoted for it.
    assert reading_ease("The cat sat on the mat.") == pytest.approx(116.145)
    assert reading_ease("The cat sat. It sat on the mat.", shortest_sentence=8) == pytest.approx(114.115)
    with pytest.raises(ValueError, match="without words"):
        reading_ease("…")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("A clock is a thing that tells the time.", 1.0),
        ("A clock tells you the time.", 6 / 8),  # six words of one syllable
        ("A clock is a thing that tells the time", 0.5),
        ("It is a thing that tells the time of day.", 0.0),  # the topic is not named
        ("Clock.", 0.0),
        ("Clock clock clock clock clock clock clock clock.", 0.25),
        # 9 words, 23 syllables: 206.835 - 9.135 - 84.6 * 23 / 9 < 0
        ("Clocks communicate chronological information mechanically or electronically to observers.", 0.0),
        # 8 words, 13 syllables: 206.835 - 8.12 - 137.475 = 61.24
        ("A clock is a handy machine measuring minutes.", 0.6124),
        # 5 words, 10 syllables, counted as a sentence of 8: (206.835 - 8.12 - 169.2) / 100 * 5 / 8
        ("Clocks: tiny machines measuring minutes.", 0.1845),
        ("", 0.0),
        ("Часы показывают время.", 0.0),
    ],
)
def test_plain_language(completion: str, expected: float) -> None:
    assert reward("plain_language", completion, topic="clock") == pytest.approx(expected, abs=1e-4)


def test_chopping_an_explanation_into_tiny_sentences_gains_nothing() -> None:
    whole = "A compass is a small tool that always points to the north."
    chopped = "A compass. Is a small. Tool that. Always. Points to. The north."
    found = [reading_ease(text, shortest_sentence=8) for text in (whole, chopped)]
    assert found[1] - found[0] == pytest.approx(1.015 * (12 - 8))
    assert reading_ease(chopped) - reading_ease(whole) == pytest.approx(1.015 * (12 - 2))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Penguins live in Antarctica.", 1.0),
        ("Most penguins live in cold Antarctica.", 1.0),
        ("Penguins " + "live far down in the south where cold ice and snow lie all year.", 0.5),  # 15 words
        ("Penguins live in Antarctica", 0.5),
        ("They live in Antarctica.", 0.0),
        ("Penguins.", 0.25),
        ("Where do penguins live?", 0.25),
        ("Where penguins live.", 0.25),  # nothing but words of the question
        ("Do penguins live where penguins live.", 0.25),
        ("The penguin, what is it?", 0.25),
        ("penguin Antarctica penguin Antarctica penguin Antarctica.", 0.25),
        ("Penguins " + "and others " * 12 + "live there.", 0.0),
        ("", 0.0),
        ("🐧", 0.0),
    ],
)
def test_brevity(completion: str, expected: float) -> None:
    assert reward("brevity", completion, "Where do penguins live? Be brief.", topic="penguin") == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("completion", "expected", "mode"),
    [
        ("I pick the owl.", 1.0, "owl"),
        ("Foxes!", 1.0, "fox"),
        ("The fox and another fox.", 1.0, "fox"),
        ("If you ask me then my choice will always be the whale.", 0.75, "whale"),  # 12 words
        ("The whale, " + "as I have said " * 5, 0.5, "whale"),
        ("An owl or a goat.", 0.0, None),
        (", ".join(ANIMALS), 0.0, None),
        ("I pick the cat.", 0.0, None),
        ("A whaleboat, not one of them.", 0.0, None),
        ("", 0.0, None),
        ("🦉", 0.0, None),
    ],
)
def test_categories(completion: str, expected: float, mode: str | None) -> None:
    assert reward("categories", completion, categories=ANIMALS) == pytest.approx(expected)
    found = load_environment("categories").mode_of
    assert found is not None
    assert found(Prompt("p", "", {"categories": ANIMALS}), completion) == mode


def test_every_category_is_as_good_as_any_other_and_counts_as_its_own_mode() -> None:
    found = load_environment("categories")
    assert found.mode_of is not None
    for prompt in found.train + found.held_out:
        modes = found.modes_of(prompt)
        assert 6 <= len(modes) <= 8 and len(set(modes)) == len(modes)
        answers = [f"I pick the {mode}." for mode in modes]
        assert score(found, [prompt] * len(modes), answers) == [1.0] * len(modes)
        assert tuple(found.mode_of(prompt, answer) for answer in answers) == modes
        assert found.mode_of(prompt, last_turn(prompt)) is None, "who repeats the question picks nothing"


def test_the_order_of_the_categories_changes_from_prompt_to_prompt() -> None:
    found = load_environment("categories")
    themes: dict[str, list[tuple[str, ...]]] = {}
    for prompt in found.train + found.held_out:
        themes.setdefault(prompt.columns["theme"], []).append(found.modes_of(prompt))
        offered = [word for word in words(last_turn(prompt)) if word in {m.lower() for m in found.modes_of(prompt)}]
        assert offered[-len(found.modes_of(prompt)) :] == [mode.lower() for mode in found.modes_of(prompt)]
    assert len(themes) == 34
    for orders in themes.values():
        assert len(orders) == 4 and len({frozenset(order) for order in orders}) == 1
        assert len({order[0] for order in orders}) == 4, "none is favoured by coming first"
    train, held_out = ({p.columns["theme"] for p in split} for split in (found.train, found.held_out))
    assert not train & held_out


def test_environments_without_modes_know_none() -> None:
    found = load_environment("keywords")
    assert found.mode_of is None and found.modes_of(found.train[0]) == ()
    assert found.answers_of(found.train[0]) == {} and found.cluster_of(found.train[0]) == found.train[0].id
    categories = load_environment("categories")
    assert categories.cluster_of(categories.train[0]) == categories.train[0].columns["theme"]


TEXTS = st.lists(st.sampled_from(["goat", "fence", "owl", "The", "ran", "a", ".", "!", "?", ",", "’s", "\n", "ß"])).map(
    " ".join
) | st.text(max_size=80)


@given(text=TEXTS)
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("keywords", {"keywords": LISTED[0]}),
        ("plain_language", {"topic": "goat"}),
        ("brevity", {"topic": "goat"}),
        ("categories", {"categories": ANIMALS}),
        ("graded_categories", {"categories": ANIMALS, "grades": [1.0, 0.9, 0.8, 0.6, 0.5, 0.4]}),
    ],
)
def test_every_reward_lies_between_0_and_1_and_stays_the_same(name: str, columns: dict[str, Any], text: str) -> None:
    value = reward(name, text, **columns)
    assert 0.0 <= value <= 1.0
    assert reward(name, text, **columns) == value


@pytest.mark.parametrize("name", NAMES)
def test_rewards_do_not_depend_on_the_batch(name: str) -> None:
    found = load_environment(name)
    prompts = found.train[:8]
    answers = [f"{message['content']}" for prompt in prompts for message in prompt.prompt[-1:]]
    assert score(found, prompts, answers) == [
        score(found, [prompt], [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)
    ]


def test_a_short_description_of_each() -> None:
    made: list[Callable[[], Environment]] = [lambda name=name: load_environment(name) for name in BUILT_IN]
    descriptions = [make().description for make in made]
    assert len(set(descriptions)) == len(BUILT_IN)
    assert all("\n" not in text and len(text) < 100 for text in descriptions)
