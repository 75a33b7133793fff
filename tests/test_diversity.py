"""distinct-n against values counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.diversity import distinct_n


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
def test_by_hand(texts: list[str], n: int, expected: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_nothing_to_count_is_none_and_not_zero() -> None:
    assert distinct_n([], 1) is None
    assert distinct_n(["", "?!", "one"], 2) is None


def test_order_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        distinct_n(["a"], 0)


@given(st.lists(st.text("ab c", max_size=12), max_size=5), st.integers(1, 3))
def test_share_lies_in_range_and_copies_divide_it(texts: list[str], n: int) -> None:
    share = distinct_n(texts, n)
    if share is None:
        return
    assert 0 < share <= 1
    assert distinct_n(texts * 3, n) == pytest.approx(share / 3)
