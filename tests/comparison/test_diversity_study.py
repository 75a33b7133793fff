"""What is compared with what: per input, across inputs, among the good; and everything at once for a study cell."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.diversity_cases import DIFFERENT, labels, meaning_of, outputs
from tdpo.diversity import (
    Diversity,
    across_inputs,
    distinct_n,
    embedding_diversity,
    measure_diversity,
    per_input,
    quality_gate,
    self_bleu,
    vendi_score,
)

METRICS = ("embedding_diversity", "ead", "distinct_1", "distinct_2", "self_bleu", "vendi")
MODES = ("a", "b", "c")
EMPTY = ("", "  \n", "?!", "…")


def words(texts: list[str]) -> float | None:
    return distinct_n(texts, 1)


def vectors(texts: list[str], seed: int = 0) -> np.ndarray:
    """Embeddings [K, 16] that belong to the text; rows of zeros for texts without words."""
    rows = [
        np.random.default_rng([seed, *text.encode()]).normal(size=16) if any(map(str.isalnum, text)) else np.zeros(16)
        for text in texts
    ]
    return np.array(rows).reshape(len(texts), 16)


def test_per_input_leaves_out_what_has_no_words() -> None:
    assert per_input(words, [["a b", "a b"], ["a", ""], [], ["", "c", "?", "d"]]) == [0.5, None, None, 1]
    found = per_input(embedding_diversity, [np.eye(2), np.zeros((3, 2)), torch.tensor([[1.0, 0], [0, 0], [2, 0]]), []])
    assert found == [1, None, 0, None]


def test_across_inputs_by_hand() -> None:
    # k = 0: {a, a} → 1/2; k = 1: {b, c, d} → 1; k = 2: {e}, alone.
    assert across_inputs(words, [["a", "b", "e"], ["a", "c"], ["", "d"]]) == (0.5 + 1) / 2
    assert across_inputs(words, [["a"], [""]]) is across_inputs(words, []) is None
    assert across_inputs(vendi_score, [np.eye(3), np.eye(3)[[0, 2, 1]]]) == pytest.approx((1 + 2 + 2) / 3)


def test_the_gate_keeps_what_is_at_or_above_the_threshold() -> None:
    rewards = [[0.5, 0.49, math.nan, None, 1.0]]
    assert quality_gate([["a", "b", "c", "d", "e"]], rewards, 0.5) == [["a", "e"]]
    assert per_input(embedding_diversity, quality_gate([np.eye(5)], rewards, 0.5)) == [1]
    assert per_input(embedding_diversity, quality_gate([torch.eye(5)], rewards, 0.5)) == [1]


def cell(texts: list[list[str]], **options: Any) -> Diversity:
    return measure_diversity(texts, embeddings=[vectors(group) for group in texts], **options)


def test_a_study_cell_by_hand() -> None:
    texts = [["one two", "one three", "one two", ""], ["red", "?", "", "blue"], ["", "", "", ""]]
    rewards = [[1.0, 0.7, 0.2, 0.9], [0.9, 0.9, 0.1, 0.6], [1.0, 1.0, 1.0, 1.0]]
    marks = [["a", "b", "a", None], ["c", None, None, None], [None] * 4]
    found = cell(texts, rewards=rewards, threshold=0.7, modes=[MODES] * len(texts), labels=marks)
    assert found.per_prompt["distinct_1"] == [pytest.approx(3 / 6), 1, None]
    assert found.overall["distinct_1"] == pytest.approx((3 / 6 + 1) / 2)
    assert found.per_prompt["distinct_2"] == [pytest.approx(2 / 3), None, None]
    assert found.per_prompt["self_bleu"][1:] == [0, None]
    assert found.per_prompt["embedding_diversity"][0] == embedding_diversity(vectors(texts[0]))
    # Above the threshold: "one two", "one three"; of the second prompt only "red", which is too few.
    assert found.per_prompt["gated_distinct_1"] == [pytest.approx(3 / 4), None, None]
    assert found.per_prompt["gated_vendi"][0] == vendi_score(vectors(texts[0][:2]))
    # An empty response is not a good one, whatever its reward.
    assert found.per_prompt["gated_share"] == [2 / 4, 1 / 4, 0]
    assert found.per_prompt["mode_coverage"] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
    assert found.per_prompt["mode_entropy"][1:] == [1, None]
    assert found.per_prompt["valid_share"] == [3 / 4, 1 / 4, 0]
    assert found.overall["valid_share"] == pytest.approx(1 / 3)
    # k = 0: one two red; k = 3: blue alone; the others hold one text only.
    assert found.overall["across_distinct_1"] == 1


def test_the_names_are_those_of_the_study() -> None:
    texts, rewards, marks = [["x y", "z"]], [[1.0, 0.0]], [["a", None]]
    full = cell(texts, rewards=rewards, threshold=0.5, modes=[MODES] * len(texts), labels=marks)
    modes = {"mode_coverage", "mode_entropy", "valid_share"}
    per_prompt = {*METRICS, *(f"gated_{name}" for name in METRICS), "gated_share", *modes}
    assert full.per_prompt.keys() == per_prompt
    assert full.overall.keys() == per_prompt | {f"across_{name}" for name in METRICS}
    text_metrics = set(METRICS) - {"embedding_diversity", "vendi"}
    # What was not given is not measured.
    assert measure_diversity(texts).per_prompt.keys() == text_metrics
    assert measure_diversity(texts, rewards=rewards).per_prompt.keys() == text_metrics
    assert measure_diversity(texts, labels=marks).per_prompt.keys() == text_metrics
    assert set(measure_diversity([]).overall.values()) == {None}


def test_what_does_not_agree_is_refused() -> None:
    with pytest.raises(ValueError, match="rewards are given for 1 prompts, texts for 2"):
        measure_diversity([["a"], ["b"]], rewards=[[1.0]])
    with pytest.raises(ValueError, match="prompt 1 has 1 texts, but 2 embeddings"):
        measure_diversity([["a"], ["b"]], embeddings=[np.ones((1, 2)), np.ones((2, 2))])
    with pytest.raises(ValueError, match="modes are known, but no labels"):
        measure_diversity([["a"]], modes=[MODES])


def test_an_empty_output_may_have_any_embedding() -> None:
    texts = [["one", "", "two"]]
    rows = [[1.0, 0.0], [math.nan, 5.0], [0.0, 1.0]]
    assert measure_diversity(texts, embeddings=[rows]).overall["embedding_diversity"] == pytest.approx(1)


def test_a_missing_sacrebleu_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ModuleNotFoundError, match=r"sacrebleu, which is not installed: pip install .*\[eval\]"):
        self_bleu(["a", "b"])


# One response: text, reward, mode.
RESPONSE = st.tuples(
    st.text("ab c.", max_size=8) | st.sampled_from(EMPTY), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(MODES)
)
CELL = st.integers(1, 4).flatmap(lambda k: st.lists(st.lists(RESPONSE, min_size=k, max_size=k), max_size=4))
Cell = list[list[tuple[str, float, str]]]


def measured(responses: Cell) -> Diversity:
    texts, rewards, marks = ([[r[i] for r in group] for group in responses] for i in range(3))
    return cell(texts, rewards=rewards, threshold=0.5, modes=[MODES] * len(texts), labels=marks)


def assert_same(
    before: dict[str, Any], after: dict[str, Any], without: Callable[[str], bool] = lambda name: False
) -> None:
    assert before.keys() == after.keys()
    for name in before:
        if not without(name):
            assert after[name] == pytest.approx(before[name], abs=1e-12), name


@settings(deadline=None)  # sacrebleu is imported on first use
@given(CELL, st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_of_samples_does_not_matter(responses: Cell, random: Random) -> None:
    before = measured(responses)
    prompts = random.sample(range(len(responses)), len(responses))
    samples = random.sample(range(len(responses[0])), len(responses[0])) if responses else []
    after = measured([[responses[p][k] for k in samples] for p in prompts])
    assert_same(before.overall, after.overall)
    for name, values in before.per_prompt.items():
        assert after.per_prompt[name] == pytest.approx([values[p] for p in prompts], abs=1e-12), name
    # Per input, each prompt may have an order of its own.
    shuffled = measured([random.sample(group, len(group)) for group in responses])
    assert_same(before.per_prompt, shuffled.per_prompt)


@settings(deadline=None)  # sacrebleu is imported on first use
@given(CELL, st.randoms(use_true_random=False))
def test_inserted_empty_outputs_change_nothing_but_the_shares(responses: Cell, random: Random) -> None:
    before = measured(responses)

    def share(name: str) -> bool:
        return name.endswith("_share")

    # Anywhere in a prompt's outputs: sets across inputs are then others.
    longer = [list(group) for group in responses]
    for group in longer:
        group.insert(random.randint(0, len(group)), (random.choice(EMPTY), 1.0, "a"))
    assert_same(before.per_prompt, measured(longer).per_prompt, share)
    # As a sample of all prompts, and as a prompt of its own.
    place = random.randint(0, len(responses[0])) if responses else 0
    wider: Cell = [[*group[:place], ("", 1.0, "a"), *group[place:]] for group in responses]
    assert_same(before.overall, measured(wider).overall, share)
    silent: Cell = [*responses, [("", 1.0, "a")] * 3]
    assert_same(before.overall, measured(silent).overall, lambda name: share(name) or name == "mode_coverage")
    # Saying nothing is no success: with n responses of which g were good, g/(n + 1) are.
    for name in ("gated_share", "valid_share"):
        shares = zip(before.per_prompt[name], responses, strict=True)
        expected = [value * len(group) / (len(group) + 1) for value, group in shares if value is not None]
        assert measured(longer).per_prompt[name] == pytest.approx(expected)


def overall(embed: Callable[[list[str]], np.ndarray]) -> list[dict[str, float | None]]:
    """All metrics for outputs with 1, 2, 4, 8 meanings.

    Eight prompts have the same outputs, each turned by one sample more, so that across inputs the same ones meet.
    """
    cells = []
    for different in DIFFERENT:
        texts = [outputs(different)[turn:] + outputs(different)[:turn] for turn in range(8)]
        marks = [labels(different)[turn:] + labels(different)[:turn] for turn in range(8)]
        options: dict[str, Any] = {
            "modes": [[m for m in labels(8) if m]] * len(texts),
            "labels": marks,
            "threshold": 0.5,
        }
        rewards, rows = [[1.0] * 8] * 8, [embed(group) for group in texts]
        cells.append(measure_diversity(texts, rewards=rewards, embeddings=rows, **options).overall)
    return cells


def assert_ordered(cells: list[dict[str, float | None]]) -> None:
    everywhere = [f"{prefix}{name}" for prefix in ("", "across_", "gated_") for name in METRICS]
    for name in [*everywhere, "mode_coverage", "mode_entropy"]:
        values = [found[name] for found in cells]
        falls = name.endswith("self_bleu")
        assert all((b < a) if falls else (a < b) for a, b in pairwise(values)), (name, values)  # type: ignore[operator]


def by_meaning(texts: list[str]) -> np.ndarray:
    """One direction a meaning and a little of the wording: what a good embedding would say."""
    return np.stack([vectors([meaning_of(text)])[0] + 0.2 * vectors([text])[0] for text in texts])


def test_every_metric_orders_texts_of_known_diversity_strictly() -> None:
    assert_ordered(overall(by_meaning))


@pytest.mark.slow
@pytest.mark.bundled
def test_with_minilm_every_metric_orders_texts_of_known_diversity_strictly() -> None:
    from tdpo.embeddings import SentenceEmbedder

    assert_ordered(overall(SentenceEmbedder.load().embed))
