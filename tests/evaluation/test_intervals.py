"""The bootstrap of evaluations and studies: pinned numbers, blocks that change nothing, and the two kinds of ends."""

from __future__ import annotations

import numpy as np
import pytest

from tdpo import bootstrap
from tdpo.bootstrap import drawn_units, resample_interval, unit_counts
from tdpo.evaluation.intervals import interval, paired_difference, std

VALUES = np.arange(12.0).reshape(6, 2) ** 1.5


def test_the_intervals_of_an_evaluation_stay_what_they_were() -> None:
    assert interval(VALUES, seed=3) == pytest.approx([6.06731307378904, 24.35875372164558], rel=1e-12)
    assert interval(VALUES, std, seed=1) == pytest.approx([4.826696842342784, 14.741634825179746], rel=1e-12)
    difference = paired_difference(VALUES, VALUES[::-1] * 0.9, seed=2)
    assert difference["estimate"] == pytest.approx(1.4929598613555477, rel=1e-12)
    assert difference["interval"] == pytest.approx([-15.719217206778518, 18.748924088021045], rel=1e-12)


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
