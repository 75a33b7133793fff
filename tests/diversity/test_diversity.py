"""Each diversity metric against values counted by hand, an independent computation, and known extremes."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from helpers.diversity_cases import DIFFERENT, labels, outputs
from tdpo.diversity import (
    distinct_n,
    embedding_diversity,
    expectation_adjusted_distinct,
    mode_coverage,
    mode_entropy,
    self_bleu,
    vendi_score,
)

TEXTS = st.lists(st.text("ab cB.", max_size=14), max_size=6)
# Rows that are zero or clearly not, so that no rounding decides which are ignored.
ROWS = npst.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.integers(-3, 3))


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["the cat sat on the mat"], 1, 5 / 6),
        (["the cat sat on the mat"], 2, 5 / 5),
        (["a a a a"], 1, 1 / 4),
        (["a a a a"], 2, 1 / 3),
        # The same text twice halves the share; n-grams do not cross the border (b, a) of two texts.
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "b a"], 2, 2 / 2),
        # Case and punctuation do not make words different, apostrophes belong to them.
        (["Fine, FINE... fine!"], 1, 1 / 3),
        (["don't don’t do"], 1, 3 / 3),
    ],
)
def test_distinct_n_by_hand(texts: list[str], n: int, expected: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_nothing_to_count_is_none_and_not_zero() -> None:
    assert distinct_n([], 1) is None
    assert distinct_n(["", "?!", "one"], 2) is None
    assert expectation_adjusted_distinct([]) is expectation_adjusted_distinct(["", "?!"]) is None
    assert self_bleu(["one", "", "?!"]) is self_bleu([]) is None
    assert embedding_diversity([[1.0, 0.0], [0.0, 0.0]]) is vendi_score([]) is None
    assert mode_entropy([None, None]) is mode_entropy([]) is mode_coverage(["a"][:0], ()) is None


def test_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        distinct_n(["a"], 0)
    with pytest.raises(ValueError, match=r"numbers from 1 on, not \(1, 0\)"):
        expectation_adjusted_distinct(["a"], orders=(1, 0))
    with pytest.raises(ValueError, match="vocabulary must be at least 2, not 1"):
        expectation_adjusted_distinct(["a"], vocabulary=1)


@given(st.lists(st.text("ab c", max_size=12), max_size=5), st.integers(1, 3))
def test_share_lies_in_range_and_copies_divide_it(texts: list[str], n: int) -> None:
    share = distinct_n(texts, n)
    if share is None:
        return
    assert 0 < share <= 1
    assert distinct_n(texts * 3, n) == pytest.approx(share / 3)


def test_ead_by_hand() -> None:
    # V = 4. Words: 2 different of 3, expected 4·(1 − (3/4)³) = 37/16. Pairs: 2 of 2, expected 4·(1 − 9/16) = 7/4.
    # The text has no 3-grams with n = 4: that order does not count.
    found = expectation_adjusted_distinct(["a b a"], vocabulary=4, orders=(1, 2, 4))
    assert found == pytest.approx((2 / (37 / 16) + 2 / (7 / 4)) / 2, rel=1e-14)


def test_ead_keeps_its_digits_for_few_words_of_a_large_vocabulary() -> None:
    # One word: 1/(V·(1 − (V − 1)/V)) = 1 for every V; computed as it is written, 1e12 leaves five digits.
    assert expectation_adjusted_distinct(["word"], vocabulary=10**12) == pytest.approx(1, rel=1e-14)
    naive = 1 / (1e12 * (1 - (1e12 - 1) / 1e12))
    assert abs(naive - 1) > 1e-6


def test_ead_of_uniform_words_does_not_fall_with_length_as_distinct_n_does() -> None:
    words = np.random.default_rng(0).integers(0, 50, 400).astype(str).tolist()
    short, long = [" ".join(words[:40])], [" ".join(words)]
    ead = [expectation_adjusted_distinct(texts, vocabulary=50, orders=(1,)) for texts in (short, long)]
    assert ead == pytest.approx([1, 1], abs=0.1)
    assert distinct_n(short, 1) > 4 * distinct_n(long, 1)  # type: ignore[operator]


@given(TEXTS)
def test_self_bleu_is_sacrebleus_sentence_bleu_against_all_others(texts: list[str]) -> None:
    kept = [text for text in texts if any(c.isalnum() for c in text)]
    if len(kept) < 2:
        assert self_bleu(texts) is None
        return
    scores = [sacrebleu.sentence_bleu(text, kept[:i] + kept[i + 1 :]).score for i, text in enumerate(kept)]
    assert self_bleu(texts) == pytest.approx(sum(min(s, 100) for s in scores) / len(scores) / 100, abs=1e-14)


def test_self_bleu_by_hand() -> None:
    # "a b" against "a c d": 1 of 2 words, 0 of 1 pairs smoothed to 1/2, one word too short: exp(1 − 3/2).
    one = math.exp(1 - 3 / 2) * math.sqrt(1 / 2 * 1 / 2)
    # "a c d" against "a b": 1/3 of words, 0 of 2 pairs smoothed to 1/4, 0 of 1 triples to 1/4; no brevity penalty.
    other = (1 / 3 * 1 / 4 * 1 / 4) ** (1 / 3)
    assert self_bleu(["a b", "a c d"]) == pytest.approx((one + other) / 2, rel=1e-12)
    assert self_bleu(["a b c d e"] * 3) == 1
    assert self_bleu(["a b", "c d", "e f"]) == 0
    # One copy of each is all it takes: copies hide from self-BLEU how many different texts there are.
    assert self_bleu(["a b", "a b", "c d", "c d"]) == 1


def test_embedding_diversity_by_hand() -> None:
    # Angles 0°, 60°, 90°: cosines 1/2, 0, √3/2. Lengths do not matter.
    rows = [[2.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, 7.0]]
    assert embedding_diversity(rows) == pytest.approx(1 - (0.5 + 0 + math.sqrt(3) / 2) / 3, rel=1e-14)
    assert embedding_diversity([[1.0, 0.0], [-3.0, 0.0]]) == 2


def test_vendi_by_hand() -> None:
    # Two rows with cosine c: eigenvalues (1 ± c)/2.
    c = 0.6
    upper, lower = (1 + c) / 2, (1 - c) / 2
    expected = math.exp(-upper * math.log(upper) - lower * math.log(lower))
    assert vendi_score([[1.0, 0.0], [0.6, 0.8]]) == pytest.approx(expected, rel=1e-14)


@examples(deadline=None)
@given(ROWS)
def test_embedding_metrics_against_the_explicit_kernel(rows: np.ndarray) -> None:
    kept = [row / np.linalg.norm(row) for row in rows if row.any()]
    if len(kept) < 2:
        assert embedding_diversity(rows) is None and vendi_score(rows) is None
        return
    pairs = [float(a @ b) for a, b in combinations(kept, 2)]
    assert embedding_diversity(rows) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-12)
    # Singular values of the rows instead of eigenvalues of their kernel.
    squares = np.linalg.svd(np.array(kept), compute_uv=False) ** 2 / len(kept)
    expected = np.exp(-sum(s * np.log(s) for s in squares if s > 0))
    found = vendi_score(rows)
    assert found == pytest.approx(expected, abs=1e-9) and 1 <= found <= len(kept)  # type: ignore[operator]


def test_vendi_against_the_matrix_logarithm() -> None:
    """The von Neumann entropy −tr(ρ log ρ), its logarithm summed as a series: no eigenvalue is computed."""
    rows = np.random.default_rng(1).normal(size=(5, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rho = rows @ rows.T / 5
    rest, power, logarithm = np.eye(5) - rho, np.eye(5), np.zeros((5, 5))
    for k in range(1, 3000):  # log ρ = −Σ (1 − ρ)^k / k
        power = power @ rest
        logarithm -= power / k
    assert vendi_score(rows) == pytest.approx(math.exp(-np.trace(rho @ logarithm)), rel=1e-10)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_known_extremes(k: int) -> None:
    same = np.tile(np.random.default_rng(k).normal(size=384).astype(np.float32), (k, 1))
    assert embedding_diversity(same) == pytest.approx(0, abs=1e-15)
    assert vendi_score(same) == pytest.approx(1, abs=1e-12)
    assert embedding_diversity(np.eye(k)) == pytest.approx(1, rel=1e-15)
    assert vendi_score(torch.eye(k, dtype=torch.bfloat16)) == pytest.approx(k, rel=1e-12)
    assert self_bleu(["the same words again"] * k) == 1
    assert distinct_n(["the same words again"] * k, 2) == pytest.approx(1 / k)
    assert mode_entropy([str(i) for i in range(k)]) == pytest.approx(k, rel=1e-14)
    assert mode_entropy(["one"] * k) == 1


def test_broken_embeddings_are_named() -> None:
    with pytest.raises(ValueError, match=r"outputs \[1\] hold NaN or infinity"):
        vendi_score([[1.0, 0.0], [math.nan, 0.0]])
    with pytest.raises(ValueError, match=r"a matrix \[outputs, dimension\], not of shape \(3,\)"):
        embedding_diversity(np.ones(3))


def test_modes_by_hand() -> None:
    modes = ("noun", "verb", "name", "number")
    assert mode_coverage(["noun", None, "verb", "noun"], modes) == 2 / 4
    assert mode_coverage([None], modes) == mode_coverage([], modes) == 0
    # Frequencies 2/3 and 1/3.
    expected = math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3))
    assert mode_entropy(["noun", None, "verb", "noun"]) == pytest.approx(expected, rel=1e-14)
    with pytest.raises(ValueError, match="the label 'verbs' is not among the known modes"):
        mode_coverage(["verbs"], modes)


def test_word_and_mode_metrics_order_texts_of_known_diversity_strictly() -> None:
    def rises(values: list[float | None]) -> bool:
        return all(a < b for a, b in pairwise(values))  # type: ignore[operator]

    texts = [outputs(different) for different in DIFFERENT]
    assert rises([distinct_n(t, 1) for t in texts])
    assert rises([distinct_n(t, 2) for t in texts])
    assert rises([expectation_adjusted_distinct(t) for t in texts])
    assert rises([-self_bleu(t) for t in texts])  # type: ignore[operator]
    assert [mode_entropy(labels(d)) for d in DIFFERENT] == pytest.approx(DIFFERENT)
    assert [mode_coverage(labels(d), labels(8)) for d in DIFFERENT] == [d / 8 for d in DIFFERENT]  # type: ignore[arg-type]
