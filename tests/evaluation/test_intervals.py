"""Intervals of evaluations and studies: pinned numbers, blocks that change nothing, and the two kinds of ends; shares
that do not collapse, prompts as clusters, and how often the truth is covered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from helpers.interval_coverage import mean_coverage, share_coverage
from tdpo import bootstrap
from tdpo.bootstrap import drawn_units, expanded_tail, resample_interval, unit_counts
from tdpo.evaluation.intervals import (
    effective_size,
    interval,
    mean_by_prompt,
    numbered,
    paired_difference,
    share_interval,
    std,
)

VALUES = np.arange(12.0).reshape(6, 2) ** 1.5


def test_the_intervals_of_an_evaluation_stay_what_they_were() -> None:
    assert interval(VALUES, seed=3) == pytest.approx([3.318443498220093, 28.065748293072488], rel=1e-12)
    assert interval(VALUES, std, seed=1) == pytest.approx([3.011126208603494, 15.759707475732109], rel=1e-12)
    difference = paired_difference(VALUES, VALUES[::-1] * 0.9, seed=2)
    assert difference["estimate"] == pytest.approx(1.4929598613555477, rel=1e-12)
    assert difference["interval"] == pytest.approx([-22.073381881898186, 27.109425707894065], rel=1e-12)


@pytest.mark.parametrize("units", [6, 10, 40, 1000])
def test_the_ends_are_expanded_as_students_distribution_asks(units: int) -> None:
    exact = norm.cdf(-np.sqrt(units / (units - 1)) * student.ppf(0.975, units - 1))
    assert expanded_tail(units) == pytest.approx(exact, rel=2e-2)
    assert expanded_tail(units) < 0.025


def test_blocks_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = interval(VALUES, seed=3)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 100)
    assert interval(VALUES, seed=3) == whole
    (one,) = drawn_units(np.random.default_rng(1), 7, 50)
    blocks = list(drawn_units(np.random.default_rng(1), 7, 50, block=8))
    assert len(blocks) == 7 and np.array_equal(np.concatenate(blocks), one)


def test_counts_are_those_of_the_draws_after_one_of_each() -> None:
    counts = unit_counts(np.random.default_rng(1), 7, 50)
    (drawn,) = drawn_units(np.random.default_rng(1), 7, 50)
    assert np.array_equal(counts[0], np.ones(7))
    assert np.array_equal(counts[1:], [np.bincount(row, minlength=7) for row in drawn])


def test_undefined_resamples_push_both_ends_outwards() -> None:
    values = np.arange(1.0, 101.0)
    assert resample_interval(values) == (3.0, 98.0)  # 2.5 of 100 on each side, rounded down
    values[50] = np.nan
    assert resample_interval(values) == (2.0, 99.0)
    values[:10] = np.nan
    assert resample_interval(values) == (None, None)


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0, 3.0, 4.0, 5.0], [0.1] * 8])
def test_what_resamples_cannot_show_has_no_interval(values: list[float]) -> None:
    """Five values hold the middle of their distribution in 94 % of cases; equal ones say nothing of their spread."""
    assert interval(np.array(values)) is None
    same = paired_difference(np.array([values, values]).T, np.zeros((len(values), 2)))
    assert same["interval"] is None and same["estimate"] == pytest.approx(np.mean(values))


def test_the_share_of_independent_pairs_is_wilsons() -> None:
    """Against the tables of Newcombe 1998 (81 of 263, 15 of 148, 0 of 20, 1 of 29) and the edge."""
    for right, pairs, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert share_interval(pairs_of(right, pairs)) == pytest.approx([low, high], abs=5e-5)
    assert share_interval(pairs_of(1, 29)) == pytest.approx([0.0061, 0.1718], abs=5e-5)
    assert share_interval(pairs_of(6, 6)) == pytest.approx([0.6097, 1.0], abs=5e-5)
    assert share_interval(np.full(6, 0.5)) == pytest.approx([0.188, 0.812], abs=5e-4), "ties alone"


def pairs_of(right: int, pairs: int) -> np.ndarray:
    return np.arange(pairs) < np.float64(right)


def test_pairs_of_one_prompt_count_as_little_as_they_say() -> None:
    prompts = numbered(["b", "b", "b", "a", "a", "a", "c", "c", "c"])
    assert prompts.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert effective_size(np.ones(9), prompts) == pytest.approx(3), "all right: nothing says that they differ"
    assert effective_size(np.array([1.0, 1, 1, 0, 0, 0, 1, 1, 1]), prompts) == pytest.approx(3), "all alike"
    assert share_interval(np.ones(9), prompts) == pytest.approx([0.4385, 1.0], abs=5e-5), "as 3 of 3"
    many, right = np.repeat(np.arange(400), 2), np.tile([1.0, 0.0], 400)
    assert effective_size(right, many) == 800, "one right and one wrong in every prompt: never more than the pairs"
    assert effective_size(right[:40], np.arange(40)) == 40
    mixed = np.array([0] * 8 + [1, 2])  # Kish: 10² / (8² + 1 + 1)
    assert effective_size(np.ones(10), mixed) == pytest.approx(100 / 66)


def test_a_prompts_pairs_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=12)
    alone = mean_by_prompt(values, np.arange(12))
    assert alone == pytest.approx(interval(values), rel=1e-9)
    assert mean_by_prompt(np.repeat(values, 5), np.repeat(np.arange(12), 5)) == pytest.approx(alone, rel=1e-9)
    assert mean_by_prompt(values, np.arange(12) // 3) is None, "four prompts"
    sizes = np.array([0] * 7 + [1, 2, 3, 4, 5])
    low, high = mean_by_prompt(values, sizes) or (0, 0)
    assert low < values.mean() < high


def test_intervals_cover_what_they_promise() -> None:
    """95 %, with the error of 500 simulations; pairs of few prompts have intervals that are rather too long."""
    assert 0.93 < share_coverage(6, 1, 0.0, 500) < 0.97
    for prompts, each, alike in ((6, 4, 0.7), (20, 4, 0.0), (20, 4, 0.5), (30, 2, 1.0)):
        assert 0.93 < share_coverage(prompts, each, alike, 500) < 1.0, (prompts, each, alike)
    for units in (8, 20):
        assert 0.925 < mean_coverage("uniform", units, 500) < 0.975, units
