"""Statistics by hand, and intervals that cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.comparison_cases import study
from tdpo.comparison.cell_statistics import (
    TaskResamples,
    cell_results,
    interval,
    means_over_seeds,
    same_but_for_the_seed,
    statistics_of,
)
from tdpo.comparison.prompt_table import PromptTable
from tdpo.records.study_tables import CellKey, ResultRow

ONE, TWO = CellKey("t", "dpo", "0.1", 1), CellKey("t", "dpo", "0.1", 2)


def table_of(**metrics: list[list[float]]) -> PromptTable:
    """One list a seed, one value a prompt."""
    prompts = len(next(iter(metrics.values()))[0])
    table = PromptTable({"t": tuple(map(str, range(prompts)))})
    for number, cell in enumerate((ONE, TWO)):
        table.cells[cell] = {name: np.array(seeds[number]) for name, seeds in metrics.items() if number < len(seeds)}
    return table


def test_the_statistics_by_hand() -> None:
    nan = np.nan
    table = table_of(
        reward_mean=[[0.0, 1.0, 2.0]],
        reward_square=[[1.0, 1.0, 4.0]],  # mean of squares 2, mean 1: variance 1
        forward_kl=[[1.0, 2.0, 6.0]],
        forward_kl_tokens=[[10.0, 10.0, 40.0]],  # 9 nats on 60 tokens
        ead=[[0.5, nan, 0.7]],
        vendi=[[nan, nan, nan]],
    )
    draws = TaskResamples(table, "t", resamples=50)
    expected = {"reward_mean": 1, "reward_variance": 1, "forward_kl": 3, "forward_kl_per_token": 0.15, "ead": 0.6}
    for name, value in expected.items():
        found = draws.cell(ONE, name)
        assert found is not None and found.shape == (51,) and found[0] == pytest.approx(value), name
    assert draws.cell(ONE, "vendi") is None and draws.cell(ONE, "reverse_kl_per_token") is None
    assert statistics_of(table.cells[ONE]) == sorted([*expected, "vendi"])


def test_each_resample_is_the_statistic_of_the_prompts_that_it_drew() -> None:
    """Against a loop that draws the prompts themselves."""
    table = study(("t",), ("reference",), prompts=7)
    cell = CellKey("t", "reference", "", 1)
    draws = TaskResamples(table, "t", resamples=40)
    metrics, counts = table.cells[cell], draws._prompt_counts.astype(int)
    assert (counts.sum(axis=1) == 7).all() and (counts[0] == 1).all() and counts[1:].max() > 1
    variance, ratio = draws.cell(cell, "reward_variance"), draws.cell(cell, "forward_kl_per_token")
    assert variance is not None and ratio is not None
    for row in range(41):
        drawn = np.repeat(np.arange(7), counts[row])
        m = {name: values[drawn] for name, values in metrics.items()}
        assert variance[row] == pytest.approx(m["reward_square"].mean() - m["reward_mean"].mean() ** 2)
        assert ratio[row] == pytest.approx(m["forward_kl"].sum() / m["forward_kl_tokens"].sum())


def test_a_constant_reward_has_variance_zero() -> None:
    value = 0.1 + 0.2
    draws = TaskResamples(table_of(reward_mean=[[value] * 9], reward_square=[[value**2] * 9]), "t", resamples=20)
    variance = draws.cell(ONE, "reward_variance")
    assert variance is not None and (variance == 0).all()


def test_all_seeds_are_the_mean_of_the_seeds_and_are_drawn_too() -> None:
    table = table_of(ead=[[1.0, 1.0], [3.0, 3.0]])  # no variation over prompts: all of it is between seeds
    draws = TaskResamples(table, "t", resamples=4000)
    pooled = draws.over_seeds([ONE, TWO], "ead", [1, 2])
    assert pooled is not None and pooled[0] == 2.0
    values, counts = np.unique(pooled[1:], return_counts=True)
    # Both seeds, or one of them twice: a quarter, a half, a quarter.
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert interval(pooled) == (1.0, 3.0)
    alone = draws.over_seeds([ONE, TWO], "ead", [2])
    assert alone is not None and (alone == 3.0).all()
    half = draws.over_seeds([ONE], "ead", [1, 2])  # the cell of seed 2 failed: undefined where only that seed is drawn
    assert half is not None and half[0] == 1.0 and np.isnan(half).mean() == pytest.approx(0.25, abs=0.03)
    assert draws.over_seeds([TWO], "ead", [1]) is None


def test_another_task_or_arm_changes_no_draw() -> None:
    alone = cell_results(study(("imdb",), ("reference", "dpo")), resamples=60)
    table = study(("imdb",), ("reference", "dpo"))
    for cell, metrics in study(("keywords",), ("reference", "dpo")).cells.items():
        table.cells[cell] = metrics
    table.prompts["keywords"] = table.prompts["imdb"]
    rows = cell_results(table, resamples=60)
    assert [row for row in rows if row.task == "imdb"] == alone
    tasks = [TaskResamples(table, task, resamples=60)._prompt_counts for task in ("imdb", "keywords")]
    assert (tasks[0] != tasks[1]).any(), "tasks are drawn from independently"


def test_an_interval_by_hand_and_undefined_resamples_widen_it() -> None:
    draws = np.array([50.0, *np.arange(1.0, 101.0)])
    assert interval(draws) == (3.0, 98.0)  # 2 of 100 on each side lie outside, rounded down
    draws[[50, 60]] = np.nan  # two, which could have been anything: the ends are the next ones
    assert interval(draws) == (1.0, 100.0)
    draws[70] = np.nan
    assert interval(draws) == (None, None)
    assert interval(draws[:1]) == (None, None)


def test_results_have_a_row_per_cell_and_one_for_all_seeds() -> None:
    rows = cell_results(study(("t",), ("reference", "dpo"), prompts=20), resamples=200)
    found = {(r.arm, r.strength, r.seed): r for r in rows if r.metric == "reward_mean"}
    assert len(found) == (4 + 1) * 3
    one, two, pooled = (found["dpo", "0.1", seed] for seed in (1, 2, "all"))
    assert (
        one.value is not None and two.value is not None and pooled.value == pytest.approx((one.value + two.value) / 2)
    )
    for row in rows:
        assert row.low is not None and row.high is not None and row.value is not None
        assert row.low <= row.value <= row.high
    assert rows == sorted(rows, key=lambda row: row.order)


def test_an_infinite_kl_is_shown_and_has_no_interval() -> None:
    rows = cell_results(table_of(forward_kl=[[1.0, np.inf, 2.0] * 2, [1.0, 2.0, 3.0] * 2]), resamples=50)
    found = {row.seed: row for row in rows}
    assert found[1].value == np.inf and found[1].low is None and found["all"].low is None
    assert found[2].value == 2.0 and found[2].low is not None


def test_means_over_seeds_leave_out_what_is_undefined() -> None:
    def rows(*values: float | None) -> list[ResultRow]:
        return [ResultRow("t", "dpo", "0.1", seed, "accuracy", value) for seed, value in enumerate(values)]

    assert means_over_seeds(rows(0.5, None, 0.7)) == [ResultRow("t", "dpo", "0.1", "all", "accuracy", 0.6)]
    assert means_over_seeds(rows(None)) == [ResultRow("t", "dpo", "0.1", "all", "accuracy", None)]


def test_groups_differ_in_the_seed_only() -> None:
    other = CellKey("t", "dpo", "1", 1)
    assert same_but_for_the_seed([TWO, other, ONE]) == [[ONE, TWO], [other]]


def test_intervals_over_prompts_cover_the_truth_in_about_95_of_100_studies() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(300):
        table = table_of(ead=[list(random.exponential(1.0, 40))])
        row = cell_results(table, resamples=300)[0]
        assert row.low is not None and row.high is not None
        covered += row.low <= 1.0 <= row.high
    # Percentile intervals of a skewed mean of 40 are a little short: about 93 %.
    assert 0.89 <= covered / 300 <= 0.98
