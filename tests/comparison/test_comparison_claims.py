"""Frontiers by hand, the verdict rules by hand, and studies whose truth is known."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from helpers.comparison_cases import ARMS, REFERENCE_SD, cells_of, study
from tdpo.comparison import claims
from tdpo.comparison.cell_statistics import TaskResamples
from tdpo.comparison.claims import Answer, judge, judge_claims, verdict_of
from tdpo.comparison.frontiers import Frontier, arm_frontier, gap
from tdpo.comparison.prompt_table import PromptTable
from tdpo.comparison.questions import NOT_BELOW, Question
from tdpo.records.study_tables import CellKey

FEW = 300  # resamples, where the number of them is not the point


def frontier(*points: tuple[float, float], start: float | None = None) -> Frontier:
    x, y = (np.array(column, dtype=float)[:, None] for column in zip(*points, strict=True))
    return Frontier(x, y, None if start is None else np.array([start]))


def gap_of(first: Frontier, second: Frontier) -> tuple[float, float, float]:
    found = gap(first, second)
    return float(found.mean[0]), float(found.low[0]), float(found.high[0])


FLAT = frontier((0, 0), (10, 0))
PEAK = [(0.0, 0.0), (5.0, 5.0), (10.0, 0.0)]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # A line over half its range: mean of x/2 on [0, 2] is 1/2.
        (frontier((0, 0), (4, 2)), frontier((0, 0), (2, 0)), (0.5, 0, 2)),
        # Neighbours in x are joined, in whatever order the strengths come.
        (frontier((4, 0), (0, 0), (2, 4)), FLAT, (np.mean([4 - abs(2 * x - 4) for x in np.linspace(0, 4, 41)]), 0, 4)),
        (frontier(*PEAK), frontier(*PEAK[::-1]), (0, 0, 10)),
        # Two points at x = 2 count as one of their mean height 3: the gap is the line 3x/2.
        (frontier((0, 0), (2, 6), (2, 0)), FLAT, (1.5, 0, 2)),
        # … also where the ties lie inside the range.
        (frontier((0, 0), (2, 6), (2, 0), (4, 3)), frontier((2, 0), (4, 0)), (3, 2, 4)),
        # The range begins at the reference; a point below it (x = −5) has no influence.
        (frontier((0, 0), (-5, 99), (2, 2), start=0), frontier((0, 0), (2, 0), (-4, -7), start=0), (1, 0, 2)),
        # Not monotonic in strength: the reward goes 0 → 4 → 2, and the line visits both branches: (0,8) (2,0) (4,4).
        (
            frontier((0, 8), (4, 4), (2, 0), start=0),
            FLAT,
            (np.mean(np.interp(np.linspace(0, 4, 41), [0, 2, 4], [8, 0, 4])), 0, 4),
        ),
        # A missing point (an undefined statistic) is left out.
        (frontier((0, 0), (1, math.nan), (math.nan, 5), (2, 2)), FLAT, (1, 0, 2)),
    ],
)
def test_the_gap_by_hand(first: Frontier, second: Frontier, expected: tuple[float, float, float]) -> None:
    assert gap_of(first, second) == pytest.approx(expected, abs=1e-12)
    value, low, high = gap_of(second, first)
    assert (-value, low, high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (frontier((0, 0), (1, 1)), frontier((2, 0), (3, 1))),
        (frontier((0, 0), (1, 1)), frontier((1, 0), (3, 1))),  # they touch: a range of no length
        (frontier((1, 0), (0.5, 3), start=1), frontier((1, 0), (3, 1), start=1)),  # never above the reference
        (frontier((1, 1)), FLAT),
        (frontier((math.nan, 1), (2, math.nan)), FLAT),
    ],
)
def test_without_a_common_range_there_is_no_gap(first: Frontier, second: Frontier) -> None:
    assert np.isnan(gap_of(first, second)).all() and np.isnan(gap_of(second, first)).all()


def test_many_draws_at_once_are_each_draw_alone() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(2, n, 25)).round(1) for n in (5, 3))  # rounded: with ties
    first[0, 2, 3] = np.nan
    together = gap(Frontier(*first), Frontier(*second)).mean
    for draw in range(25):
        alone = gap(Frontier(*first[:, :, draw, None]), Frontier(*second[:, :, draw, None]))
        np.testing.assert_allclose(alone.mean[0], together[draw], rtol=1e-12)


def test_an_arms_frontier_has_the_reference_as_its_first_point_with_a_kl_of_zero() -> None:
    table = study(("t",), ("reference", "dpo"), noise=0, prompts=5)
    for cell in table.of("t", "reference"):
        del table.cells[cell]["forward_kl"]  # a study need not measure the reference's KL to itself
    draws = TaskResamples(table, "t", resamples=10)
    found = arm_frontier(draws, "dpo", "forward_kl", "reward_mean", [1, 2])
    assert found is not None and found.start is not None and (found.start == 0).all()
    assert found.x[:, 0] ** 2 == pytest.approx([0, 12, 6, 3, 1]) and found.y[:, 0] == pytest.approx(
        [0.4, 0.8, 0.7, 0.6, 0.5]
    )
    trained = arm_frontier(draws, "dpo", "forward_kl", "reward_mean", [1, 2], reference=False)
    assert trained is not None and trained.start is None and len(trained.x) == 4


def test_arms_on_one_curve_do_not_differ_by_where_their_points_lie() -> None:
    """Reward as √KL; lines straight in the KL would give the arm with the nearer first point 4 % more."""
    table = PromptTable({"t": ("0", "1")})
    cells = {("reference", ""): 0.0, ("dpo", "0.1"): 9.0, ("dpo", "0.3"): 4.0}
    cells |= {("tdpo2", strength): kl for strength, kl in [("0.1", 9.0), ("0.3", 2.0), ("1", 0.5)]}
    for (arm, strength), kl in cells.items():
        reward, kls = np.full(2, kl**0.5), np.full(2, kl)
        values = {"reward_mean": reward, "reward_square": reward**2 + 1, "forward_kl": kls, "reverse_kl": kls}
        table.cells[CellKey("t", arm, strength, 1)] = values
    for part in parts_of(judge_claims(table, resamples=FEW), "3"):
        assert part["value"] == pytest.approx(0, abs=1e-12)
        assert part["tasks"][0]["range"] == pytest.approx([0, 9])  # in nats


@pytest.mark.parametrize(
    ("low", "high", "above", "expected"),
    [
        (0.1, 0.2, 0.0, "supported"),
        (-0.2, -0.1, 0.0, "contradicted"),
        (-0.1, 0.1, 0.0, "undecided"),
        (0.0, 0.0, 0.0, "undecided"),  # identical arms
        (0.0, 0.1, 0.0, "undecided"),
        (-0.1, 0.0, 0.0, "undecided"),
        (None, None, 0.0, "undecided"),
        # "Not below": a loss of a tenth must be excluded; significantly below is below, however little.
        (-0.10, 0.1, NOT_BELOW, "supported"),
        (-0.11, 0.1, NOT_BELOW, "undecided"),
        (-0.08, -0.02, NOT_BELOW, "contradicted"),
    ],
)
def test_a_parts_verdict(low: float | None, high: float | None, above: float, expected: str) -> None:
    assert verdict_of(low, high, above) == expected


def answers(*verdicts: str, primary: bool = True, value: float | None = 0.0) -> list[Answer]:
    question = Question("tdpo2", "dpo", "ead", "reward_mean", primary=primary)
    return [Answer(question, value, 0.0, 0.0, verdict) for verdict in verdicts]


@pytest.mark.parametrize(
    ("parts", "expected", "words"),
    [
        (answers("supported", "supported"), "supported", "All 2 comparisons agree"),
        (
            answers("supported", "undecided"),
            "undecided",
            "1 of 2 comparisons agree with the claim and none contradicts",
        ),
        (answers("supported", "contradicted", "undecided"), "contradicted", "1 of 3 comparisons point the other way"),
        (answers("undecided", value=None), "undecided", "1 could not be made"),
        (answers("supported") + answers("contradicted", primary=False), "supported", "1 point the other way"),
        (answers("undecided") + answers("supported", primary=False), "undecided", "interval of 1 does not settle it"),
    ],
)
def test_a_claims_verdict(parts: list[Answer], expected: str, words: str) -> None:
    verdict, why = judge(parts)
    assert verdict == expected and words in why


def parts_of(result: dict[str, Any], claim: str, *, primary: bool = True) -> list[dict[str, Any]]:
    [found] = [c for c in result["claims"] if c["id"] == claim]
    return [part for part in found["parts"] if part["primary"] is primary]


def test_planted_differences_are_found_with_sign_and_size() -> None:
    table = study(
        diversity={"tdpo2": 0.05},
        reward={"tdpo2": 0.03},
        spread={"ppo_reverse": 0.8, "tdpo2": 1.1},
        modes={"ppo_forward": 0.1},
        noise=0.01,
    )
    result = judge_claims(table, resamples=FEW)
    assert [c["verdict"] for c in result["claims"]] == ["supported"] * 4
    assert [len(parts_of(result, i)) for i in "1234"] == [6, 2, 2, 6]

    def values(claim: str, matched: str) -> list[float]:
        return [part["value"] for part in parts_of(result, claim) if part["matched"] == matched]

    # TDPO2 lies 0.05 higher at equal strength, and has 0.03 more reward there, at which others lost 0.015 more:
    # together 0.065 at every trained point. The line from the reference takes off some, where the range begins.
    assert all(0.045 < value < 0.065 for value in values("1", "reward_mean"))
    trained = [p["value"] for p in parts_of(result, "1", primary=False) if p["text"].endswith("trained points only")]
    assert len(trained) == 6
    assert trained[0] == pytest.approx(0.065, abs=0.004)
    assert trained[1] == pytest.approx(0.05, abs=0.004)  # at equal KL, strengths coincide
    # Two tasks, and rewards in standard deviations of the reference's: √(0.2² + what prompts differ by).
    sd = math.sqrt(REFERENCE_SD**2 + 0.01**2)
    trained_reward, _ = (part["value"] for part in parts_of(result, "3", primary=False))
    assert trained_reward == pytest.approx(0.03 / sd, rel=0.1)
    below, kept = (part["value"] for part in parts_of(result, "2"))
    assert below == pytest.approx(-2 * math.log(0.8), abs=0.03) and kept == pytest.approx(2 * math.log(1.1), abs=0.03)
    exact = parts_of(result, "4")[0]
    assert exact["text"] == "PPO (forward KL) against PPO (exact reverse KL), at matched reward"
    # self-BLEU is lower by 100 × 0.05, and its sign is turned.
    bleu = [part for part in parts_of(result, "1", primary=False) if part["metric"] == "self_bleu"]
    assert len(bleu) == 6 and all(part["value"] > 3 and part["verdict"] == "supported" for part in bleu)


def test_the_same_differences_the_other_way_contradict() -> None:
    table = study(
        diversity={"tdpo2": -0.05},
        reward={"tdpo2": -0.03},
        spread={"tdpo2": 0.8},
        modes={"ppo_forward": -0.1},
        noise=0.01,
    )
    result = judge_claims(table, resamples=FEW)
    assert [c["verdict"] for c in result["claims"]] == ["contradicted"] * 4
    assert "TDPO2 not below Reference, averaged over strengths" in result["claims"][1]["why"]
    assert all(part["verdict"] == "contradicted" for claim in "134" for part in parts_of(result, claim))


def test_one_opponent_ahead_is_enough_to_contradict_and_is_named() -> None:
    table = study(diversity={"tdpo2": 0.05, "dpo": 0.1}, noise=0.01)
    [claim, *_] = judge_claims(table, resamples=FEW)["claims"]
    assert claim["verdict"] == "contradicted"
    assert "3 of 6 comparisons point the other way" in claim["why"]
    assert "TDPO2 against DPO, at matched forward KL" in claim["why"] and "3 agree" in claim["why"]


def test_identical_arms_differ_by_exactly_nothing() -> None:
    table = study(("t",), ("reference", "dpo"), prompts=17)
    for arm in ("tdpo2", "ppo_reverse", "ppo_reverse_exact", "ppo_forward"):
        for cell in table.of("t", "dpo"):
            table.cells[CellKey("t", arm, cell.strength, cell.seed)] = dict(table.cells[cell])
    result = judge_claims(table, resamples=FEW)
    for claim in "134":
        for part in parts_of(result, claim):
            assert (part["value"], part["low"], part["high"], part["verdict"]) == (0, 0, 0, "undecided"), part["text"]


def test_the_log_ratio_of_variances_by_hand() -> None:
    """Two strengths, two seeds, one task: mean over strengths of the log of the ratio of means over seeds."""
    table = PromptTable({"t": tuple("012345")})
    variances = {
        ("reference", ""): (1.0, 3.0),  # mean 2
        ("ppo_reverse", "0.1"): (0.5, 0.5),  # a quarter
        ("ppo_reverse", "1"): (1.0, 1.0),  # a half
        ("tdpo2", "0.1"): (4.0, 4.0),  # twice
        ("tdpo2", "1"): (0.0, 0.0),  # none, which counts as a thousandth
    }
    for (arm, strength), values in variances.items():
        for seed, variance in enumerate(values, start=1):
            reward = np.ones(6)
            square = 1.0 + np.full(6, variance)
            table.cells[CellKey("t", arm, strength, seed)] = {"reward_mean": reward, "reward_square": square}
    below, kept = parts_of(judge_claims(table, resamples=FEW), "2")
    assert below["value"] == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert kept["value"] == pytest.approx((math.log(2) + math.log(1e-3)) / 2)
    # The prompts do not vary, the reference's seeds do: the ratio's ends are those of either seed alone.
    assert (below["low"], below["high"]) == pytest.approx(
        [math.log(1 / math.sqrt(0.5)), math.log(3 / math.sqrt(0.5))], abs=1e-9
    )


def test_the_order_of_rows_and_runs_does_not_matter() -> None:
    rows = list(study(("b", "a"), ("reference", "dpo", "tdpo2", "ppo_reverse"), prompts=10).rows())
    results = []
    for number in range(2):
        random.Random(number).shuffle(rows)
        results.append(json.dumps(judge_claims(PromptTable.from_rows(rows), resamples=FEW)))
    assert results[0] == results[1]


def test_missing_cells_are_left_out_and_named() -> None:
    table, planned = study(noise=0.01, diversity={"tdpo2": 0.05}), cells_of(("keywords", "imdb"), ARMS)
    lost = [
        CellKey("keywords", "tdpo2", "0.3", 2),  # its point is seed 1's
        *(CellKey("imdb", "dpo", strength, 1) for strength in ("0.03", "0.1", "0.3", "1")),  # only seed 2 is compared
        CellKey("imdb", "sft", "0.1", 1),  # no part of any claim
    ]
    for cell in lost:
        del table.cells[cell]
    result = judge_claims(table, planned, resamples=FEW)
    first = result["claims"][0]
    assert first["verdict"] == "supported"
    assert "Missing cells: imdb/dpo/0.03/seed 1; imdb/dpo/0.1/seed 1" in first["why"]
    assert "keywords/tdpo2/0.3/seed 2" in first["why"] and "sft" not in first["why"]
    assert "Missing" not in result["claims"][3]["why"]

    # What is compared on imdb is what a study of seed 2 alone compares.
    only_two = PromptTable({"imdb": table.prompts["imdb"]})
    only_two.cells = {c: m for c, m in table.cells.items() if c.task == "imdb" and c.seed == 2}
    alone = parts_of(judge_claims(only_two, resamples=FEW), "3")[0]["tasks"][0]
    among = next(t for t in parts_of(result, "3")[0]["tasks"] if t["task"] == "imdb")
    assert among == alone


def test_an_arm_that_is_missing_leaves_its_parts_open_and_says_so() -> None:
    result = judge_claims(study(arms=("reference", "tdpo2", "dpo"), diversity={"tdpo2": 0.05}), resamples=FEW)
    first = result["claims"][0]
    assert first["verdict"] == "undecided"
    assert "3 of 6 comparisons agree" in first["why"] and "3 could not be made" in first["why"]
    assert "keywords: no cell of PPO (reverse KL)" in first["why"]
    part = first["parts"][0]
    assert part["value"] is None and part["tasks"] == [] and part["verdict"] == "undecided"
    assert part["text"].endswith(
        "at matched reward: imdb: no cell of PPO (reverse KL); keywords: no cell of PPO (reverse KL)"
    )
    assert len(parts_of(result, "4")) == 3  # PPO with the exact reverse KL enters only where a study has it


def test_tasks_that_cannot_be_compared_are_named_and_the_others_count() -> None:
    table = study(diversity={"tdpo2": 0.05}, noise=0.01, reward={"dpo": 0.0})
    for cell in table.of("imdb", "dpo"):
        table.cells[cell]["reward_mean"] = table.cells[cell]["reward_mean"] - 1  # below the reference everywhere
    for cell in table.of("imdb"):
        del table.cells[cell]["mode_coverage"]
    result = judge_claims(table, resamples=FEW)
    part = next(p for p in parts_of(result, "1") if "DPO" in p["text"].split("against")[1] and "reward" in p["text"])
    assert [task["task"] for task in part["tasks"]] == ["keywords"]
    assert part["value"] == part["tasks"][0]["value"]
    assert "Left out: imdb: no common range of reward." in result["claims"][0]["why"]
    # A task without known modes is no gap in the study.
    assert "Left out" not in result["claims"][3]["why"]
    for cell in table.of("keywords"):
        del table.cells[cell]["mode_coverage"]
    nothing = judge_claims(table, resamples=FEW)["claims"][3]
    assert nothing["verdict"] == "undecided"
    assert nothing["why"] == (
        "0 of 6 comparisons agree with the claim and none contradicts it, but 6 could not be made. "
        "Left out: no task measures mode coverage and reward; no task measures mode coverage and forward KL; "
        "no task measures mode coverage and reverse KL."
    )


def test_a_range_that_hardly_exists_gives_no_interval_and_no_verdict() -> None:
    table = study(("t",), diversity={"tdpo2": 0.05}, noise=0.05)
    shift = (
        np.mean([table.cells[c]["reward_mean"].mean() for c in table.of("t", "dpo") if c.strength == "0.03"]) - 0.401
    )
    for cell in table.of("t", "dpo"):  # DPO's best reward is all but the reference's
        table.cells[cell]["reward_mean"] = table.cells[cell]["reward_mean"] - shift
    result = judge_claims(table, resamples=FEW)
    part = next(p for p in parts_of(result, "1") if p["text"] == "TDPO2 against DPO, at matched reward")
    assert part["value"] is not None and part["low"] is None and part["verdict"] == "undecided"
    assert "Without an interval, as many resamples have no common range: t." in result["claims"][0]["why"]


def test_the_json_is_what_the_contract_says() -> None:
    result = judge_claims(study(("t",), ("reference", "dpo", "tdpo2"), prompts=6), resamples=50)
    assert list(result) == ["schema", "confidence", "resamples", "primary_diversity", "missing_cells", "claims"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for claim in result["claims"]:
        assert set(claim) == {"id", "text", "verdict", "why", "parts"}
        for part in claim["parts"]:
            assert set(part) == {
                "text", "primary", "metric", "matched", "unit", "value", "low", "high", "verdict", "tasks",
            }  # fmt: skip
            for task in part["tasks"]:
                assert set(task) == {"task", "value", "low", "high", "range"}
    empty = judge_claims(PromptTable(), cells_of(("t",), ("reference", "dpo")))
    assert {claim["verdict"] for claim in empty["claims"]} == {"undecided"}


@pytest.mark.parametrize(
    ("seeds", "seed_noise", "least", "most"),
    [
        ((1,), 0.0, 0.90, 0.985),
        # Two crossed levels are careful where only prompts vary …
        ((1, 2), 0.0, 0.95, 1.0),
        # … and too short where seeds vary more than prompts do (here 0.03 against 0.05 / √30) and are only two.
        ((1, 2), 0.03, 0.70, 0.90),
    ],
)
def test_without_a_difference_how_often_the_interval_covers_zero(
    seeds: tuple[int, ...], seed_noise: float, least: float, most: float
) -> None:
    covered = undecided = 0
    studies = 200
    question = Question("tdpo2", "dpo", "embedding_diversity", "reward_mean")
    for number in range(studies):
        table = study(
            ("a", "b"), ("reference", "dpo", "tdpo2"),
            noise=0.05, prompts=30, number=number, seeds=seeds, seed_noise=seed_noise,
        )  # fmt: skip
        found = claims.answer([TaskResamples(table, task, resamples=FEW) for task in table.tasks()], question)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
        undecided += found.verdict == "undecided"
    assert covered == undecided
    assert least <= covered / studies <= most


def test_five_prompts_give_numbers_and_no_verdict() -> None:
    """Five values hold the middle of their distribution in 94 % of cases, so no resample of them has 95 %."""
    five, six = (
        judge_claims(study(("t",), diversity={"tdpo2": 0.5}, prompts=prompts), resamples=FEW) for prompts in (5, 6)
    )
    for part in parts_of(five, "1"):
        assert part["value"] is not None and (part["low"], part["high"], part["verdict"]) == (None, None, "undecided")
    assert "as fewer than 6 prompts cannot give one: t." in five["claims"][0]["why"]
    assert six["claims"][0]["verdict"] == "supported"
