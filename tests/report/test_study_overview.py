"""The first screen of a study's page: every method with intervals, in order, where methods can be compared."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.report_checks import visible_text
from helpers.study_fixtures import read, write
from tdpo.records.metric_names import nats
from tdpo.report import write_study_report
from tdpo.report.numbers import show, show_interval
from tdpo.report.study.overview import Overview, in_words, overviews
from tdpo.report.study.provenance import settings_facts, task_table
from tdpo.report.study.strengths import choices, rules_of
from tdpo.report.study.study_reading import StudyRecord, load_study

TWO_CORES = Path(__file__).resolve().parents[2] / "docs/study/two_cores"
HELD = ("dpo", "tdpo1", "tdpo2")


@pytest.fixture(scope="module")
def held(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up study, as if three of its arms had been held at targets."""
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("held") / "study"))
    about = read(copy / "about.json")
    for arm in about["arms"]:
        if arm["name"] in HELD:
            arm["strength"] = "target of the reverse KL, nats"
    write(copy / "about.json", about)
    (copy / "responses.csv").unlink()  # they take the longest to write
    return copy


@pytest.fixture(scope="module")
def html(held: Path) -> str:
    return write_study_report(held).read_text(encoding="utf-8")


def shown(study: StudyRecord) -> list[Overview]:
    return overviews(study, choices(study))


def means(folder: Path, task: str, strength: str, metric: str) -> dict[str, tuple[float, list[float]]]:
    """By arm the mean over seeds and its interval, as results.csv has them."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["arm"]: (float(row["value"]), [float(row["low"]), float(row["high"])])
            for row in csv.DictReader(file)
            if (row["task"], row["strength"], row["seed"], row["metric"]) == (task, strength, "all", metric)
        }


def test_methods_held_at_a_target_are_ordered_by_diversity_and_the_others_stand_beside(held: Path) -> None:
    overview = shown(load_study(held))[0]
    assert [m.key for m in overview.metrics] == ["embedding_diversity", "reward_mean", "reverse_kl"]
    assert [place.words.partition(";")[0] for place in overview.places] == [
        f"Held at a reverse KL of {target} nats" for target in ("0.03", "0.1", "0.3")
    ]
    for place, target in zip(overview.places, ("0.03", "0.1", "0.3"), strict=True):
        found = means(held, "keywords", target, "embedding_diversity")
        assert [row.arm for row in place.compared] == sorted(HELD, key=lambda arm: -found[arm][0])
        assert {row.arm for row in place.beside}.isdisjoint(HELD) and len(place.beside) == 5
        for row in place.compared:
            value, limits = found[row.arm]
            assert (row.dots[0].text, row.dots[0].limits) == (show(value), show_interval(limits))
            dot = row.dots[0]
            assert dot.dot is not None and 0 <= dot.left < dot.dot < dot.left + dot.width <= 100
    both = [row.dots[0] for place in overview.places for row in place.beside if row.arm == "reference"]
    assert len(set(both)) == 1, "every place has the same axis"


def test_without_targets_methods_are_compared_where_their_kls_are_nearest(folder: Path) -> None:
    study = load_study(folder)
    overview = shown(study)[0]
    [place] = overview.places
    kls = [means(folder, "keywords", s, "reverse_kl") for s in ("0.0001", "0.1")]
    measured = sorted(value for found in kls for value, _ in found.values())
    between = f"measured: {nats(measured[0])} to {nats(measured[-1])} nats"
    assert (
        place.words
        == f"At the strength whose reverse KL is nearest to {show(choices(study)['keywords'].target)} nats; {between}"
    )
    assert [row.arm for row in place.beside] == ["reference"] and len(place.compared) == 7
    assert {row.arm: row.note for row in place.compared}["sft"] == "learning rate 0.0001"
    best = place.compared[0].label
    assert overview.lead == f"In order of embedding diversity: {best} has the highest mean."


def test_of_a_metric_that_is_lower_for_more_diversity_the_lowest_comes_first(held: Path) -> None:
    question = {"text": "?", "metric": "gated_self_bleu", "answers": []}
    study = replace(load_study(held), answers={"questions": [{"metric": "reward_mean"}, question]})
    overview = shown(study)[0]
    values = [float(row.dots[0].text) for row in overview.places[0].compared]
    assert overview.metrics[0].key == "gated_self_bleu" and values == sorted(values)
    assert "has the lowest mean at 0.03 nats" in overview.lead


def test_a_task_without_diversity_is_ordered_by_reward_and_one_without_both_is_left_out(folder: Path) -> None:
    study = load_study(folder)
    rewards = {key: value for key, value in study.results.items() if key[3] in ("reward_mean", "reverse_kl")}
    assert [m.key for m in shown(replace(study, results=rewards))[0].metrics] == ["reward_mean", "reverse_kl"]
    assert shown(replace(study, results={})) == []


def test_the_first_strength_is_that_of_a_target_where_there_are_targets(held: Path, html: str) -> None:
    study = load_study(held)
    assert list(rules_of(study)) == ["target-0.03", "target-0.1", "target-0.3", "tight", "loose", "best"]
    assert rules_of(study)["target-0.3"] == "held at 0.3 nats"
    choice = choices(study)["keywords"]
    assert choice.target is None and {choice.first[arm] for arm in HELD} == {"0.03"}
    assert choice.rules["target-0.3"]["tdpo2"] == "0.3"
    assert choice.first["ppo_forward"] == "0.5", "held at none: the tightest has the KL nearest to 0.03 nats"
    text = visible_text(html)
    assert "At first it is the target of 0.03 nats; of a method that is held at none, the strength whose" in text
    assert "nearest to a common value" not in text


def test_the_words_of_the_first_screen_are_explained_on_it(held: Path, folder: Path, html: str) -> None:
    study = load_study(held)
    words = in_words(study, shown(study))
    assert "0 is no distance" in words and "A target is the value at which training held it." in words
    study = load_study(folder)
    assert "A target" not in in_words(study, shown(study))
    head = html.partition('<main id="main">')[0]
    text = visible_text(head)
    assert text.index("has the highest mean") < text.index("is no test") < text.rindex(" supported ")
    assert 'href="#methods"' in head and 'href="#glossary"' in head


def test_the_times_of_a_study_that_was_stopped_say_what_they_are(folder: Path) -> None:
    study = load_study(folder)
    facts = dict(settings_facts(study))
    assert facts["Time at work"].startswith("2 h 18 min, the sum over all calls of the command; a call that was killed")
    assert facts["Last call"] == "began 2026-11-22 09:14:03 UTC, wrote its tables 2026-11-22 11:32:33 UTC"


def test_of_many_modes_the_first_are_named(folder: Path) -> None:
    study = load_study(folder)
    facts = replace(study.tasks[2].facts, modes=[f"m{i}" for i in range(100)])
    [row] = [
        r
        for r in task_table(replace(study, tasks=[replace(study.tasks[2], facts=facts)])).rows
        if r.title == "Known modes"
    ]
    assert row.cells[0].text.startswith("m0, m1, ") and row.cells[0].text.endswith("m23 and 76 more")


@pytest.mark.parametrize("target", ["1", "2"])
def test_the_first_screen_of_the_study_at_targets_holds_its_results(target: str) -> None:
    study = load_study(TWO_CORES)
    [overview] = shown(study)
    assert overview.lead == (
        "In order of embedding diversity, good ones only: of those held at a target, TDPO2 has the highest mean at "
        "1 nat and at 2 nats."
    )
    place = overview.places[int(target) - 1]
    found: dict[str, Any] = {m.key: means(TWO_CORES, "graded_categories", target, m.key) for m in overview.metrics}
    diversity = found["gated_embedding_diversity"]
    assert [row.arm for row in place.compared] == sorted(diversity, key=lambda arm: -diversity[arm][0])
    assert len(place.compared) == 6 and [row.arm for row in place.beside] == [
        "reference",
        "best_of",
        "temperature",
        "sft",
    ]
    for row in place.compared:
        assert [dot.limits for dot in row.dots] == [show_interval(found[m.key][row.arm][1]) for m in overview.metrics]
