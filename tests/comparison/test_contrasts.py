"""Contrasts by hand, and studies whose truth is known: estimates, intervals, verdicts, how arms met, and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.special import stdtrit

from helpers.comparison_cases import study
from helpers.contrast_cases import HELD, RESPONSES, held_study
from tdpo.comparison import contrasts
from tdpo.comparison.answering import answers_json, answers_of, claims_of
from tdpo.comparison.contrast_tables import ContrastData, reward_variance
from tdpo.comparison.contrasts import Answer, adjusted_for_family, answer, answer_all, holm
from tdpo.comparison.expected_widths import Design, pair_components, planned_half_width
from tdpo.comparison.study import _changed
from tdpo.comparison.two_way import (
    Components,
    TwoWayMean,
    components_of,
    expected_half_width,
    filled,
    mean_squares,
    two_way_mean,
    variance_of_mean,
)
from tdpo.config import Contrast, load_study
from tdpo.records.study_tables import CellKey

METRIC = "gated_embedding_diversity"


def contrast(**keys: Any) -> Contrast:
    given = {"text": "Does it matter?", "metric": METRIC, "plus": ["tdpo2"], "minus": ["dpo"], "at_targets": [3.0]}
    return Contrast.model_validate({**given, **keys})


def answered(data: ContrastData, **keys: Any) -> Answer:
    question = contrast(**keys)
    return answer(data, question, "themes", question.at_targets[0] if question.at_targets else None)


# ---- the mean of seeds × themes ----------------------------------------------------------------------------------


def test_the_parts_of_the_variance_are_those_of_the_two_way_table() -> None:
    random = np.random.default_rng(3)
    table = random.normal(0, 1, (4, 1)) + random.normal(0, 1, (1, 8)) + random.normal(0, 0.5, (4, 8))
    mean = two_way_mean(table, [str(n) for n in range(8)])
    assert mean is not None and mean.error is not None and mean.freedom is not None
    fit = table.mean(axis=1)[:, None] + table.mean(axis=0)[None] - table.mean()
    a, b = np.var(table.mean(axis=1), ddof=1) / 4, np.var(table.mean(axis=0), ddof=1) / 8
    e = ((table - fit) ** 2).sum() / (3 * 7) / 32
    assert min(a, b) > e, "both components are there"
    assert mean.value == pytest.approx(table.mean())
    assert mean.error**2 == pytest.approx(a + b - e), "Cameron, Gelbach and Miller's two ways minus their crossing"
    assert mean.freedom == pytest.approx((a + b - e) ** 2 / (a**2 / 3 + b**2 / 7 + e**2 / 21))
    low, high = mean.interval() or (0.0, 0.0)
    assert high - low == pytest.approx(2 * stdtrit(mean.freedom, 0.975) * mean.error)


def test_a_component_below_zero_joins_the_rest() -> None:
    table = np.array([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, axis=1)  # rows and blocks cancel: seeds do not differ
    of_seeds, of_themes, rest = mean_squares(table)
    variance, freedom = variance_of_mean(of_seeds, of_themes, rest, 2, 8)
    assert of_seeds == of_themes == 0 and variance == pytest.approx(8 * 2 / (2 * 8 - 1) / 16), "all 15 squares pooled"
    assert freedom == pytest.approx(15)


@pytest.mark.parametrize(("seed_sd", "theme_sd"), [(0.05, 0.0), (0.3, 1.0), (1.0, 0.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(seed_sd: float, theme_sd: float) -> None:
    """The tables of docs/study/coverage.py in small. 4 000 studies know a share to ± 0.7 % (two standard errors)."""
    random, shape = np.random.default_rng(1), (4000, 4, 40)
    tables = random.normal(0, 1, shape) + random.normal(0, seed_sd, (4000, 4, 1))
    tables += random.normal(0, theme_sd, (4000, 1, 40))
    variance, freedom = variance_of_mean(*mean_squares(tables), 4, 40)
    far = np.abs(tables.mean(axis=(1, 2))) / np.sqrt(variance)
    assert 0.93 < (far <= stdtrit(freedom, 0.975)).mean() < 0.977
    assert 0.87 < (far <= stdtrit(freedom, 0.95)).mean() < 0.94


def test_prompts_of_one_theme_count_once() -> None:
    random = np.random.default_rng(0)
    table = random.normal(0, 1, (4, 10))
    once, thrice = (
        two_way_mean(table.repeat(n, axis=1), [str(t) for t in range(10) for _ in range(n)]) for n in (1, 3)
    )
    assert once is not None and thrice is not None
    assert thrice.interval() == pytest.approx(once.interval()) and (thrice.themes, thrice.prompts) == (10, 30)


def test_gaps_are_filled_by_the_fit_to_what_is_there() -> None:
    random = np.random.default_rng(5)
    table = random.normal(0, 1, (3, 7))
    table[0, 1] = table[2, 4] = table[1, 6] = np.nan
    rows, columns = np.nonzero(np.isfinite(table))
    design = np.concatenate([np.eye(3)[rows], np.eye(7)[columns]], axis=1)
    fit = np.linalg.lstsq(design, table[rows, columns], rcond=None)[0]
    assert filled(table)[0, 1] == pytest.approx(fit[0] + fit[3 + 1], abs=1e-9)
    of_rest = mean_squares(filled(table), np.isfinite(table).mean())[2]
    residuals = table[rows, columns] - design @ fit
    assert of_rest == pytest.approx((residuals**2).sum() / (18 - 3 - 7 + 1)), "a gap costs a degree of freedom"


def test_a_seed_is_not_better_for_lacking_a_hard_prompt() -> None:
    prompts = np.array([0.0] * 9 + [-10.0])
    table = np.tile(prompts, (4, 1)) + np.array([[0.1], [0.2], [0.3], [0.4]])
    whole = two_way_mean(table, [str(n) for n in range(10)])
    table[3, 9] = np.nan
    gap = two_way_mean(table, [str(n) for n in range(10)])
    assert whole is not None and gap is not None and gap.value == pytest.approx(whole.value)
    assert (whole.share, gap.share) == (1.0, pytest.approx(39 / 40))


def test_a_prompt_counts_with_half_of_the_seeds() -> None:
    table = np.zeros((4, 8))
    table[:2, 0] = np.nan
    table[:3, 1] = np.nan
    mean = two_way_mean(table, [str(n) for n in range(8)])
    assert mean is not None and (mean.prompts, mean.share) == (7, pytest.approx(26 / 32))
    assert two_way_mean(np.full((4, 8), np.nan), ["a"] * 8) is None


@pytest.mark.parametrize("shape", [(1, 40), (4, 5)])
def test_one_seed_or_five_themes_have_no_interval(shape: tuple[int, int]) -> None:
    mean = two_way_mean(np.random.default_rng(0).normal(0, 1, shape), [str(n) for n in range(shape[1])])
    assert mean is not None and mean.interval() is None and mean.p_value is None


# ---- the variance of rewards, within prompts and between ---------------------------------------------------------


def test_variance_of_rewards_splits_as_in_the_analysis_of_variance() -> None:
    rewards = np.random.default_rng(2).normal(0, 1, (12, 5)) + np.arange(12)[:, None] / 6
    mean, square = rewards.mean(axis=1), (rewards**2).mean(axis=1)
    alone = [str(n) for n in range(12)]
    within, between, total = (reward_variance(mean, square, 5, alone, c) for c in ("within", "between", None))
    assert within == pytest.approx(rewards.var(axis=1, ddof=1))
    assert between.mean() == pytest.approx(mean.var(ddof=1) - within.mean() / 5), "the component of the means"
    assert total == pytest.approx(within + between)


def test_prompts_of_one_theme_do_not_make_the_variance_between_prompts_small() -> None:
    """Themes of three alike prompts: over all pairs the variance would be low by 2 of 29 pairs."""
    random, estimates = np.random.default_rng(4), []
    for _ in range(400):
        mean = random.normal(0, 1, 10).repeat(3)
        themes = [str(t) for t in range(10) for _ in range(3)]
        estimates.append(reward_variance(mean, mean**2, RESPONSES, themes, "between").mean())
    assert np.mean(estimates) == pytest.approx(1.0, abs=4 * np.std(estimates) / 20)
    assert np.isnan(reward_variance(np.ones(3), np.ones(3), 4, ["one"] * 3, "between")).all()


# ---- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.06, "difference"), (-0.06, "difference"), (0.0, "no relevant difference")]
)
def test_a_known_truth_gets_its_verdict(gain: float, verdict: str) -> None:
    data = held_study({"tdpo2": gain, "ppo_forward": gain}, seed_sd=0.002, theme_sd=0.02, rest_sd=0.02)
    keys = {"plus": ["tdpo2", "ppo_forward"], "minus": ["dpo", "ppo_reverse_exact"], "at_targets": [3.0, 8.0]}
    for one in answer_all(data, [contrast(**keys, primary=True, smallest_effect=0.02)]):
        assert one.verdict == verdict and one.mean is not None
        assert one.mean.value == pytest.approx(gain, abs=0.015)


def test_few_noisy_seeds_leave_it_undecided() -> None:
    one = answered(held_study(seed_sd=0.1), smallest_effect=0.02)
    assert one.verdict == "undecided" and one.mean is not None and one.mean.freedom < 12


def test_weights_ask_for_an_interaction() -> None:
    data = held_study({"tdpo2": 0.1, "dpo": 0.04, "ppo_forward": 0.03}, seed_sd=0, theme_sd=0, rest_sd=1e-9)
    weights = {"tdpo2": 1.0, "dpo": -1.0, "ppo_forward": -1.0, "ppo_reverse_exact": 1.0}
    one = answered(data, plus=[], minus=[], weights=weights)
    assert one.mean is not None and one.mean.value == pytest.approx(0.1 - 0.04 - 0.03)


def test_sft_and_the_reference_stand_on_either_side() -> None:
    one = answered(held_study({"sft": 0.2}), plus=["sft"], minus=["dpo", "reference"])
    assert one.mean is not None and one.mean.value == pytest.approx(0.2, abs=0.05)
    assert one.meeting is not None and one.meeting.met is None and one.meeting.on_target


def test_variances_need_the_number_of_responses() -> None:
    data = held_study()
    question: dict[str, Any] = {"metric": "reward_variance", "component": "within"}
    known, unknown = answered(data, **question), answered(replace(data, responses=None), **question)
    assert known.mean is not None and known.mean.value == pytest.approx(0.0, abs=1e-12)
    assert unknown.mean is None and "reward_variance was not measured" in unknown.reason


def without(data: ContrastData, arm: str, strength: str, seeds: tuple[int, ...]) -> ContrastData:
    for seed in seeds:
        del data.table.cells[CellKey("themes", arm, strength, seed)]
    return data


def test_what_is_missing_is_said() -> None:
    gone = answered(without(held_study(), "dpo", "3", (0, 1, 2, 3)), primary=True, smallest_effect=0.02)
    assert (gone.verdict, gone.reason) == ("undecided", "no run of dpo at 3 nats")
    fewer = answered(without(held_study(), "dpo", "3", (0,)))
    assert fewer.mean is not None and fewer.mean.seeds == 3
    single = answered(without(held_study(), "dpo", "3", (0, 1, 2)))
    assert (single.verdict, single.reason) == ("undecided", "no interval, as one seed cannot give one")
    apart = without(without(held_study(), "dpo", "3", (0, 1)), "tdpo2", "3", (2, 3))
    assert answered(apart).reason == "no seed that all of its arms have"


def test_a_prompt_without_a_value_on_one_side_counts_on_neither() -> None:
    data = held_study(seed_sd=0, theme_sd=0.1, rest_sd=0)
    cell = data.table.cells[CellKey("themes", "dpo", "3", 0)]
    cell[METRIC] = cell[METRIC].copy()
    cell[METRIC][:4] = np.nan
    both = {**{seed: data.table.cells[CellKey("themes", "tdpo2", "3", seed)][METRIC] for seed in range(4)}}
    one = answered(data)
    assert one.mean is not None and one.mean.share == pytest.approx(1 - 4 / 160)
    assert all(np.isfinite(values).all() for values in both.values()), "the other side has them, and leaves them out"


# ---- the family --------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_family_is_what_was_planned() -> None:
    mean = TwoWayMean(1.0, 0.4, 30.0, 4, 40, 40, 1.0)
    primary = contrast(primary=True, smallest_effect=0.02)
    known, lost, beside = (
        Answer(c, "themes", 3.0, m) for c, m in ((primary, mean), (primary, None), (contrast(), mean))
    )
    first, second, third = adjusted_for_family([known, lost, beside])
    assert mean.p_value is not None and first.p_holm == pytest.approx(2 * mean.p_value)
    assert second.p_holm is None and third.p_holm is None
    assert third.verdict == "difference", "a secondary question has its own p-value"
    many = adjusted_for_family([known] + [lost] * 4)
    assert many[0].verdict == "undecided" and many[0].p_value is not None and many[0].p_value < 0.05


def test_equivalence_needs_the_whole_interval_of_both_one_sided_tests() -> None:
    question = contrast(smallest_effect=0.02)
    for value, error, verdict in ((0.0, 0.011, "no relevant difference"), (0.0, 0.0125, "undecided")):
        assert Answer(question, "t", 3.0, TwoWayMean(value, error, 30.0, 4, 40, 40, 1.0)).verdict == verdict
    small = Answer(question, "t", 3.0, TwoWayMean(0.01, 0.001, 30.0, 4, 40, 40, 1.0))
    assert small.verdict == "no relevant difference" and small.p_value is not None and small.p_value < 0.001


# ---- how the arms met, and the other KL --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "met", "on_target"),
    [
        ({}, True, True),
        ({"dpo": 1.1}, True, True),
        ({"dpo": 1.2}, False, False),
        ({"dpo": 1.3, "tdpo2": 1.3}, True, False),
    ],
)
def test_arms_met_within_15_percent(kl: Mapping[str, float], met: bool, on_target: bool) -> None:
    meeting = answered(held_study(kl=kl)).meeting
    assert meeting is not None and (meeting.met, meeting.on_target) == (met, on_target)
    assert meeting.sides["minus"]["reverse_kl"] == pytest.approx(3 * kl.get("dpo", 1.0))
    assert meeting.sides["minus"]["forward_kl"] == pytest.approx(3.0), "the other KL stands beside it"


def test_the_kl_in_which_arms_were_to_meet_is_the_questions() -> None:
    data = held_study(other_kl={"dpo": 1.5})
    reverse, forward = (answered(data, target_kl=kl).meeting for kl in ("reverse_kl", "forward_kl"))
    assert reverse is not None and reverse.met and forward is not None and forward.met is False


def test_the_adjustment_takes_a_kl_of_zero_for_a_number() -> None:
    data = held_study(other_kl={"dpo": 0.0})
    assert answer(data, contrast(at_targets=[3.0, 8.0]), "themes", 3.0).adjusted is not None


def test_the_adjustment_compares_at_equal_values_of_the_other_kl() -> None:
    """Diversity is a level of the arm minus 0.02 for each nat of forward KL, of which DPO has half as much again."""
    data = held_study(other_kl={"dpo": 1.5}, seed_sd=0, theme_sd=0, rest_sd=0)
    for cell, metrics in data.table.cells.items():
        metrics[METRIC] = 0.7 - 0.02 * metrics["forward_kl"] + (0.05 if cell.arm == "tdpo2" else 0.0)
    question = contrast(at_targets=[3.0, 8.0])
    for target in question.at_targets:
        one = answer(data, question, "themes", target)
        assert one.mean is not None and one.mean.value == pytest.approx(0.05 + 0.02 * 0.5 * target)
        assert one.adjusted is not None and one.adjusted.value == pytest.approx(0.05)
    assert answered(data).adjusted is None, "at one target there is no slope"
    assert answer(data, contrast(minus=["sft"], at_targets=[3.0, 8.0]), "themes", 3.0).adjusted is None


# ---- words and the file ------------------------------------------------------------------------------------------


def test_the_file_says_everything_in_words_and_numbers() -> None:
    data = held_study({"tdpo2": 0.06}, kl={"dpo": 1.4}, seed_sd=0.002, theme_sd=0.02, rest_sd=0.02)
    questions = [
        contrast(at_targets=[3.0, 8.0], primary=True, smallest_effect=0.02),
        contrast(plus=["tdpo2"], minus=["ppo_forward"], primary=True, smallest_effect=0.02),
        contrast(plus=["sft"], minus=["reference"], at_targets=[]),
    ]
    written = answers_json(data, questions, 2)
    assert (written["family"], written["missing_cells"]) == (3, 2)
    apart, met, untrained = (question["answers"][0] for question in written["questions"])
    assert apart["sentence"].startswith("themes, 3 nats: TDPO2 against DPO: +0.0"), apart["sentence"]
    for words in ("95 % interval +0.0", "A difference (p < 0.001, adjusted p < 0.001)", "The arms did not meet",
                  "reverse KLs from 3 to 4.2", "this is no comparison at equal KL"):  # fmt: skip
        assert words in apart["sentence"], apart["sentence"]
    assert apart["meeting"]["met"] is False
    assert "The arms met (reverse KL 3 and 3; forward KL 3 and 3 nats)" in met["sentence"]
    assert untrained["target"] is None and untrained["sentence"].startswith("themes: SFT on chosen against Reference:")
    assert written["questions"][0]["weights"] == {"tdpo2": 1.0, "dpo": -1.0}
    points = {(point["arm"], point["target"]): point for point in written["points"]}
    assert len(points) == 2 + 2 + 1 + 2 and points["dpo", 8.0]["reverse_kl"] == pytest.approx(8 * 1.4)
    assert points["reference", None]["reverse_kl"] == 0 and points["tdpo2", 3.0]["low"] < points["tdpo2", 3.0]["high"]


def test_tasks_that_lack_the_metric_are_not_asked() -> None:
    data = held_study(tasks=("one", "two"))
    for cell, metrics in data.table.cells.items():
        if cell.task == "two":
            del metrics[METRIC]
    assert contrasts.tasks_of(data, contrast()) == ["one"]
    assert contrasts.tasks_of(data, contrast(tasks=["two"])) == ["two"]
    assert set(HELD) <= {cell.arm for cell in data.table.cells}


# ---- beforehand --------------------------------------------------------------------------------------------------


def test_half_widths_follow_from_the_variances_of_a_finished_study() -> None:
    data = held_study(seeds=range(12), seed_sd=0.02, theme_sd=0.03, rest_sd=0.05, themes=100, number=7)
    parts = pair_components(data.table, "themes", METRIC)
    assert parts is not None
    components, drawing = parts
    assert components.seed**0.5 == pytest.approx(0.02 * 2**0.5, rel=0.35)
    assert components.theme**0.5 == pytest.approx(0.03 * 2**0.5, rel=0.2)
    assert components.rest**0.5 == pytest.approx(0.05 * 2**0.5, rel=0.05)
    wide, narrow = (
        planned_half_width(components, 0.0, 16, Design(4, 40), w) for w in ((1, -1), (0.5, 0.5, -0.5, -0.5))
    )
    assert narrow == pytest.approx(wide / 2**0.5)
    assert planned_half_width(components, drawing, 8, Design(4, 40)) < wide, "twice the responses, less from drawing"
    assert planned_half_width(components, 0.0, 16, Design(5, 44, prompts=3)) < wide


def test_an_expected_half_width_is_that_of_a_table_with_just_these_mean_squares() -> None:
    parts = Components(0.01, 0.04, 0.09)
    assert parts.of_mean(4, 40) == pytest.approx(0.01 / 4 + 0.04 / 40 + 0.09 / 160)
    variance, freedom = variance_of_mean(0.01 + 0.09 / 40, 0.04 + 0.09 / 4, 0.09, 4, 40)
    assert variance == pytest.approx(parts.of_mean(4, 40))
    assert expected_half_width(parts, 4, 40) == pytest.approx(stdtrit(freedom, 0.975) * variance**0.5)
    assert components_of(np.zeros((4, 8))) == Components(0.0, 0.0, 0.0)


# ---- in a study --------------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "study_dir": "runs/own",
    "tasks": [{"environment": {"name": "keywords"}}],
    "arms": [{"name": name, "strengths": [0.1, 0.3]} for name in ("dpo", "tdpo2")],
}
ASKED = {"text": "More?", "metric": "embedding_diversity", "plus": ["tdpo2@0.1"], "minus": ["dpo@0.1", "reference"]}


def test_a_study_answers_its_questions_from_its_table() -> None:
    study_of = load_study({**STUDY, "questions": [ASKED]})
    table = study(tasks=("keywords",), arms=("reference", "dpo", "tdpo2"), seeds=(1, 2, 3), diversity={"tdpo2": 0.3})
    [question] = answers_of(study_of, table, [CellKey("keywords", "dpo", "0.3", 4)])["questions"]
    [only] = question["answers"]
    assert only["verdict"] == "difference" and (only["seeds"], only["themes"]) == (3, 40)
    reference, own = 0.9 - 0.5 * 0.4, 0.9 - 0.5 * 0.7
    assert only["value"] == pytest.approx(own + 0.3 - (own + reference) / 2, abs=0.05)
    assert only["meeting"]["met"] is None and only["target"] is None


def test_questions_take_the_place_of_the_built_in_claims_and_may_change() -> None:
    asks, claims = load_study({**STUDY, "questions": [ASKED]}), load_study(STUDY)
    assert claims_of(asks) == () and claims_of(claims) is None
    assert _changed(claims, asks) == []


def test_the_example_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/the_study.md").read_text(encoding="utf-8")
    example = yaml.safe_load("questions:" + page.partition("```text\nquestions:")[2].partition("```")[0])
    questions = [Contrast.model_validate(entry) for entry in example["questions"]]
    assert [len(question.weight_of) for question in questions] == [4, 4, 2]
