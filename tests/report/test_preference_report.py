"""The report on runs that nothing judged: what it says, what it leaves out, and how it stands beside judged ones."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tdpo.report
from helpers.report_checks import Outline, visible_text
from helpers.report_fixtures import make_run, read_json, unjudged, write_json, write_yaml
from tdpo.report import write_report
from tdpo.report.numbers import MISSING, show
from tdpo.report.page import page_content
from tdpo.report.pair_words import gaps, moved_sentences
from tdpo.report.results import evaluated_columns
from tdpo.report.run import Run
from tdpo.report.run_reading import load_runs
from tdpo.report.tables import results_table


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("preferences")
    return [unjudged(make_run(root / loss, loss=loss, prompts=6)) for loss in ("tdpo2", "dpo")]


def page(run_dirs: list[Path], out: Path) -> tuple[str, Outline]:
    html = write_report(run_dirs, out).read_text(encoding="utf-8")
    return visible_text(html), Outline(html)


# ---- what is known, and nothing of what is not ---------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2], ids=["one run", "two runs"])
def test_nothing_is_said_of_a_reward_that_there_is_not(run_dirs: list[Path], tmp_path: Path, count: int) -> None:
    text, outline = page(run_dirs[:count], tmp_path / "out.html")
    for falsehood in (
        "no generations", "No generations", "reward ,", "reward:", "no reward", "Mean reward", "mean reward",
        "gain first", "Gain or", "better than base", "change of the reward", "Reward against", "A reward’s colour",
        "environment ,",
    ):  # fmt: skip
        assert falsehood not in text, falsehood
    assert not [name for name in outline.ids if "reward" in name and name != "curve-reward"]
    sections = [name for name in outline.ids if name in ("pairs", "results", "samples", "training")]
    assert sections == ["pairs", "results", "samples", "training"], "the pairs, which say most, come first"
    assert "--reward file.py:function or --reward-model NAME adds a reward to each" in text


def test_the_summary_and_the_facts_are_of_pairs_and_kl(run_dirs: list[Path]) -> None:
    content = page_content(load_runs(run_dirs))
    found = read_json(run_dirs[0] / "evaluation.json")
    kl = show(found["generations"]["trained"]["reverse_kl"])
    sentence = content["summary"][0]
    assert sentence.startswith("TDPO2 prefers the chosen response in 7")
    assert f"by a margin of {show(found['pairs']['margin'])} [" in sentence
    assert sentence.endswith(f"at {kl} nats of reverse KL per response.")
    glance = dict(content["at_a_glance"])
    assert (glance["Held-out pairs"], glance["Held-out prompts"]) == ("60", "6")
    assert content["evaluation_settings"] == [
        "Prompts from pairs_held_out.jsonl, 6 held-out prompts, 4 responses to each, at most 32 tokens long, "
        "temperature 1, seed 1234"
    ]
    assert content["pair_sources"] == ["pairs_held_out.jsonl"]
    drawn = [figure.id for figure in content["figures"] if not figure.id.startswith("curve-")]
    assert drawn == [
        "result-reverse_kl", "result-forward_kl", "result-policy_entropy", "result-distinct_1", "result-distinct_2",
        "pairs-accuracy", "pairs-margin", "pairs-log_ratio", "pairs-forward_kl", "pairs-reverse_kl",
    ]  # fmt: skip


def test_both_sides_stand_beside_the_bases_own_log_probabilities(run_dirs: list[Path]) -> None:
    content = page_content(load_runs(run_dirs))
    pairs = read_json(run_dirs[1] / "evaluation.json")["pairs"]
    rows = {row.title: row for row in content["pairs"].rows}
    for side in ("chosen", "rejected"):
        base, trained = (rows[f"{side.capitalize()} log-probability, {who}"] for who in ("base", "trained"))
        assert base.cells[1].text == show(pairs[f"{side}_reference_logp"])
        assert trained.cells[1].text == show(pairs[f"{side}_logp"])
    figure = next(figure for figure in content["figures"] if figure.id == "pairs-log_ratio")
    assert [row[0] for row in figure.rows] == ["TDPO2, chosen", "TDPO2, rejected", "DPO, chosen", "DPO, rejected"]
    assert figure.data[3]["x"] == [pairs["rejected_log_ratio"]]
    assert [trace["marker"]["symbol"].endswith("-open") for trace in figure.data] == [False, True, False, True]
    alone = page_content(load_runs(run_dirs[:1]))
    figure = next(figure for figure in alone["figures"] if figure.id == "pairs-log_ratio")
    assert [row[0] for row in figure.rows] == ["chosen", "rejected"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        ((1.2, [1.0, 1.5]), (-0.9, [-1.1, -0.7]), "gained 1.20 nats [1.00, 1.50] and the rejected ones lost 0.90 nats"
         " [0.70, 1.10] (means over held-out pairs)."),
        ((-1.0, [-1.5, -0.5]), (-3.0, [-4.0, -2.0]), "lost 1.00 nats [0.50, 1.50] and the rejected ones lost 3.00 nats"
         " [2.00, 4.00] (means over held-out pairs): both sides lost probability, which is likelihood displacement."),
        ((-0.1, [-0.5, 0.3]), (-3.0, [-4.0, -2.0]), "did not measurably move (−0.10 nats [−0.50, 0.30]) and the "
         "rejected ones lost 3.00 nats [2.00, 4.00] (means over held-out pairs)."),
        ((-1.0, None), (2.0, None), "lost 1.00 nats and the rejected ones gained 2.00 nats (means"),
    ],
)  # fmt: skip
def test_displacement_is_said_as_the_data_have_it(chosen: Any, rejected: Any, said: str) -> None:
    pairs = {"chosen_log_ratio": chosen[0], "rejected_log_ratio": rejected[0], "held_out": True}
    pairs["intervals"] = {"chosen_log_ratio": chosen[1], "rejected_log_ratio": rejected[1]}
    [sentence] = moved_sentences([Run(Path("r"), "DPO", 0, evaluation={"pairs": pairs})])
    assert said in sentence and sentence.endswith(".")
    assert moved_sentences([Run(Path("r"), "DPO", 0, evaluation={"pairs": {"accuracy": 0.5}})]) == []


def test_a_run_that_has_no_model_yet_is_not_to_be_evaluated(run_dirs: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(run_dirs[0], tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json", "model"))
    write_json(run / "status.json", {"state": "interrupted", "step": 3, "max_steps": 64})
    [unfinished] = load_runs([run])
    for part in ("pairs", "generations"):
        assert gaps([unfinished], part)[0][1] == f"tdpo train {run} --resume"
    assert any(f"`tdpo evaluate {run}` can compare it with the base model once" in n for n in unfinished.notes)
    checkpoint = run / "checkpoint-3"
    running = replace(unfinished, status={"state": "running"})
    assert gaps([running], "pairs")[0][1] == ""
    checkpoint.mkdir()
    write_json(checkpoint / "config.json", {})
    assert gaps([running], "pairs")[0][1] == f"tdpo evaluate {checkpoint}"
    write_json(run / "status.json", {"state": "finished", "step": 64, "max_steps": 64})
    assert gaps(load_runs([run]), "pairs")[0][1] == f"tdpo evaluate {run}"


def test_only_pairs_that_the_run_held_out_are_called_unseen(run_dirs: list[Path], tmp_path: Path) -> None:
    assert "Pairs that training never saw, from pairs_held_out.jsonl." in page(run_dirs[:1], tmp_path / "own.html")[0]
    other = shutil.copytree(run_dirs[0], tmp_path / "other")
    found = read_json(other / "evaluation.json")
    found["pairs"] |= {"held_out": None, "source": "any.jsonl"}
    write_json(other / "evaluation.json", found)
    text = page([other], tmp_path / "other.html")[0]
    assert "Pairs from any.jsonl; whether training saw them is not recorded." in text
    assert "never saw" not in text and "of the pairs from any.jsonl" in text


# ---- what is missing is said with the command that adds it ---------------------------------------------------


def test_gaps_name_the_command_that_fills_them(run_dirs: list[Path], tmp_path: Path) -> None:
    run = load_runs(run_dirs[:1])[0]
    assert gaps([run], "pairs") == gaps([run], "generations") == []
    named = replace(run, path=Path("runs/my run"))
    unanswered = replace(named, evaluation={**run.evaluation, "generations": None})
    [(sentence, command)] = gaps([unanswered], "generations")
    assert "No responses of TDPO2" in sentence
    assert command == "tdpo evaluate 'runs/my run' evaluation.max_prompts=32"
    assert gaps([replace(named, evaluation={})], "pairs") == [
        ("TDPO2 has not been evaluated.", "tdpo evaluate 'runs/my run'")
    ]
    none_held_out = replace(named, evaluation={}, recipe={"data": {"train": "a.jsonl", "eval": None}})
    assert [command for part in ("pairs", "generations") for _, command in gaps([none_held_out], part)] == ["", ""]
    assert "holds no pairs out" in gaps([none_held_out], "pairs")[0][0]


def test_responses_of_an_earlier_evaluation_are_not_shown(tmp_path: Path) -> None:
    run = unjudged(make_run(tmp_path / "run", steps=3, prompts=3))
    found = read_json(run / "evaluation.json")
    write_json(run / "evaluation.json", {**found, "settings": None, "generations": None})
    loaded = load_runs([run])[0]
    assert loaded.samples == [] and any("of an earlier evaluation" in note for note in loaded.notes)
    text, outline = page([run], tmp_path / "out.html")
    assert "evaluation.max_prompts=32" in text and "samples" not in outline.ids and "#samples" not in outline.links
    (run / "samples.jsonl").unlink()
    assert not any("samples.jsonl" in note for note in load_runs([run])[0].notes), "none were to be expected"


# ---- beside runs that something judged -----------------------------------------------------------------------


def test_a_run_that_nothing_judged_stands_beside_one_with_a_reward(tmp_path: Path) -> None:
    judged = make_run(tmp_path / "tdpo2", prompts=6)
    other = unjudged(make_run(tmp_path / "dpo", loss="dpo", prompts=6))
    found = read_json(judged / "evaluation.json")
    found["settings"] |= {"environment": "pairs_held_out.jsonl", "judge": "judge.py:vader"}
    write_json(judged / "evaluation.json", found)
    runs = load_runs([other, judged])
    columns = evaluated_columns(runs)
    assert [column.label for column in columns] == ["Base", "DPO", "TDPO2"], "the base is the same, judged or not"
    rows = {row.title: [cell.text for cell in row.cells] for row in results_table(columns, runs).rows}
    base, trained = (found["generations"][who]["reward_mean"] for who in ("base", "trained"))
    assert rows["Mean reward"] == [show(base), MISSING, show(trained)]
    content = page_content(runs)
    assert content["summary"][0].startswith("DPO prefers") and content["summary"][1].startswith("TDPO2 raised")
    assert [column["judged"] for column in content["samples"].payload["columns"]] == [True, False, True]
    text, outline = page([other, judged], tmp_path / "out.html")
    assert "Nothing judged the responses of DPO, so no reward of it is known." in text
    assert "judged by judge.py:vader" in text and "sample-filter" in outline.ids
    assert [name for name in outline.ids if name in ("pairs", "results")] == ["results", "pairs"]
    write_json(judged / "evaluation.json", {**found, "settings": {**found["settings"], "seed": 7}})
    assert len(evaluated_columns(load_runs([other, judged]))) == 4, "other responses of the base"


def test_a_ppo_run_beside_it_still_has_no_pairs_to_miss(run_dirs: list[Path], tmp_path: Path) -> None:
    ppo = make_run(tmp_path / "ppo", loss="ppo", prompts=6)
    text, _ = page([run_dirs[0], ppo], tmp_path / "out.html")
    assert "there are none to show for PPO." in text
    assert gaps(load_runs([ppo]), "pairs") == []


def test_every_template_is_part_of_the_package() -> None:
    root = Path(tdpo.report.__file__).parents[3]
    patterns = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    packed = {path for pattern in patterns["tdpo"] for path in (root / "src" / "tdpo").glob(pattern)}
    files = {path for path in (root / "src/tdpo/report/templates").rglob("*") if path.is_file()}
    assert len(files) > 20 and files <= packed


# ---- axes ----------------------------------------------------------------------------------------------------


def test_shares_end_at_100_percent_and_kls_start_at_zero(run_dirs: list[Path]) -> None:
    content = page_content(load_runs(run_dirs[:1]))
    figures = {figure.id: figure for figure in content["figures"]}
    low, high = figures["pairs-accuracy"].layout["xaxis"]["range"]
    assert -0.05 < low < 0 and 1 < high < 1.05
    assert figures["pairs-accuracy"].layout["shapes"][0]["x0"] == 0.5
    limits = figures["curve-accuracy"].layout["yaxis"]["autorangeoptions"]
    assert -0.05 < limits["minallowed"] < 0 and 1 < limits["maxallowed"] < 1.05
    for name in ("pairs-forward_kl", "pairs-reverse_kl", "result-reverse_kl"):
        assert figures[name].layout["xaxis"]["rangemode"] == "tozero"


def test_a_recipe_alone_is_a_preference_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    data = {"train": "pairs.jsonl", "eval_fraction": 0.1}
    write_yaml(tmp_path / "run" / "recipe.yaml", {"loss": {"name": "dpo"}, "data": data, "environment": None})
    text, _ = page([tmp_path / "run"], tmp_path / "out.html")
    assert "DPO has not been evaluated." in text and "no reward" not in text
