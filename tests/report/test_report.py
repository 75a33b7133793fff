"""The report's words, numbers and file: everything that needs no browser."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tdpo.report
from helpers.report_checks import VISIONS, Outline, contrast, lab, visible_text
from helpers.report_fixtures import make_run, read_json, write_json, write_lines
from tdpo.report import write_report
from tdpo.report.curves import curve_groups, running_mean, thinned
from tdpo.report.displacement import displacement, displacement_note
from tdpo.report.drawing import BASE_GREY, RUN_COLORS, Figure, Point, dot_figure, plot_text, readable_range
from tdpo.report.embedding import checked_script, embed_json, script_hash
from tdpo.report.figures import distribution_figure
from tdpo.report.numbers import MISSING, interval, show, show_duration, show_interval, show_share
from tdpo.report.page import page_content
from tdpo.report.results import Metric, evaluated_columns, summary_sentences
from tdpo.report.run import Run
from tdpo.report.run_facts import provenance_table, recipe_differences
from tdpo.report.run_reading import RUN_FILES, _gaps, load_runs
from tdpo.report.samples import collect_samples
from tdpo.report.tables import pairs_table, results_table
from tdpo.report.templating import template_environment
from tdpo.report.training_responses import training_responses

PACKAGE = Path(tdpo.report.__file__).parents[1]


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "sentiment-tdpo2"), make_run(root / "sentiment-dpo", loss="dpo")]


@pytest.fixture(scope="module")
def html(run_dirs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = write_report(run_dirs, tmp_path_factory.mktemp("report") / "report.html")
    return out.read_text(encoding="utf-8")


def changed(path: Path, name: str, *keys: str, to: Any) -> Path:
    """Set one value of a JSON file of the run directory `path`."""
    content = read_json(path / name)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    write_json(path / name, content)
    return path


# ---- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.574, "0.57"), (-0.0042, "−0.0042"), (0, "0"), (0.0, "0"), (-0.0, "0"), (12345, "12\u2009345"),
        (57.06, "57.1"), (9.996, "10.0"), (2e-7, "2.0e−7"), (1234.5, "1\u2009234"), (3.0, "3.00"), (160, "160"),
        (math.nan, "NaN"), (-math.inf, "−∞"), (None, MISSING), ("x", "x"), (True, "True"), (10**400, str(10**400)),
    ],
)  # fmt: skip
def test_numbers_are_short_and_unambiguous(value: Any, shown: str) -> None:
    assert show(value) == shown


def test_intervals_and_durations() -> None:
    assert show_interval([0.18, 0.32]) == "[0.18, 0.32]"
    assert show_interval([0, 0]) == "" == show_interval(None) == show_interval([1, float("nan")])
    assert interval([2, 1]) == (1.0, 2.0)
    assert [show_duration(s) for s in (0.42, 33.1, 125, 11520, -1, None)] == [
        "0.4 s", "33 s", "2 min 5 s", "3 h 12 min", MISSING, MISSING,
    ]  # fmt: skip


# ---- the summary ---------------------------------------------------------------------------------------------


def evaluated(base: float, trained: float, limits: list[float] | None, kl: float | None = 3.0) -> Run:
    change = {"estimate": trained - base, "interval": limits, "confidence": 0.95}
    evaluation = {
        "settings": {"reward": "VADER"},
        "generations": {"base": {"reward_mean": base}, "trained": {"reward_mean": trained, "reverse_kl": kl}},
        "difference": {"reward_mean": change},
    }
    return Run(Path("r"), "TDPO2", 0, evaluation=evaluation)


def test_summary_says_what_rose_how_surely_and_at_what_cost() -> None:
    assert summary_sentences([evaluated(0.33, 0.57, [0.18, 0.32])]) == [
        "TDPO2 raised the held-out VADER reward from 0.33 to 0.57 (95\u2009% interval of the change [0.18, 0.32]), "
        "at 3.00 nats of reverse KL per response."
    ]


def test_summary_says_lowered_and_admits_an_interval_with_zero() -> None:
    assert (
        "lowered the held-out VADER reward from 0.57 to 0.33"
        in summary_sentences([evaluated(0.57, 0.33, [-0.32, -0.18])])[0]
    )
    unsure = summary_sentences([evaluated(0.33, 0.36, [-0.02, 0.08])])[0]
    assert "raised" not in unsure
    assert unsure.endswith("includes zero: this evaluation cannot tell it from no change.")
    assert "includes zero" in summary_sentences([evaluated(0.33, 0.36, [0.0, 0.08])])[0]
    assert "no interval says how sure" in summary_sentences([evaluated(0.33, 0.57, None, kl=None)])[0]


def test_summary_without_generations_falls_back_to_what_is_known() -> None:
    numbers = {"accuracy": 0.7, "held_out": True, "intervals": {"accuracy": [0.6, 0.8]}}
    pairs = Run(Path("r"), "DPO", 0, evaluation={"pairs": numbers})
    losses = [{"step": 1, "split": "train", "loss": 0.69}, {"step": 2, "split": "train", "loss": 0.4}]
    runs = [
        pairs,
        Run(Path("r"), "A", 0, metrics=losses),
        Run(Path("r"), "B", 0, metrics=losses[:1]),
        Run(Path("r"), "C", 0),
    ]
    said = summary_sentences(runs)
    assert said[0] == "DPO prefers the chosen response in 70\u2009% of the held-out pairs [60\u2009%, 80\u2009%]."
    assert said[1].startswith("A took its training loss from 0.69 to 0.40 and has not been evaluated")
    assert said[2] == "B has logged one training loss, 0.69, and has not been evaluated."
    assert said[3] == "C has logged nothing to judge it by yet."


# ---- what is missing or broken is said -----------------------------------------------------------------------


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_missing_file_is_said(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", steps=3, prompts=3)
    (run / name).unlink()
    text = visible_text(write_report([run], tmp_path / "out.html").read_text(encoding="utf-8"))
    assert f"{name} is missing" in text


def test_a_run_that_only_has_its_recipe(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, prompts=3)
    for name in set(RUN_FILES) - {"recipe.yaml"}:
        (run / name).unlink()
    text = visible_text(write_report([run], tmp_path / "out.html").read_text(encoding="utf-8"))
    for sentence in ("has logged nothing", "has not been evaluated", "no responses to read", "no curves"):
        assert sentence in text


def test_broken_files_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, prompts=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    (run / "status.json").write_text("[1, 2]")
    (run / "data.json").write_text("{")
    (run / "recipe.yaml").write_text("a: [")
    (run / "environment.json").write_bytes(b'{"command": "tdpo \xff"}')
    notes = load_runs([run])[0].notes
    assert any("metrics.jsonl: line 4 is not a JSON object" in note for note in notes)
    assert any("status.json holds a list where an object is expected" in note for note in notes)
    assert any("data.json is not valid JSON" in note for note in notes)
    assert any("recipe.yaml is not valid YAML" in note for note in notes)
    text = visible_text(write_report([run], tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "tdpo \N{REPLACEMENT CHARACTER}" in text
    assert "a: [" in text


def test_values_that_are_not_finite_are_said_and_leave_gaps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=4, eval_every=0, prompts=3)
    lines = [{"step": s, "split": "train", "loss": v} for s, v in [(1, 0.7), (2, math.nan), (3, math.inf), (4, 0.5)]]
    write_lines(run / "metrics.jsonl", lines)
    changed(run, "evaluation.json", "generations", "trained", "reward_mean", to=math.nan)
    loaded = load_runs([run])[0]
    assert any("loss was not finite in 2 of 4 logged lines (first at step 2)" in note for note in loaded.notes)
    figure = curve_groups([loaded])[0].figures[0]
    assert figure.data[0]["y"] == [0.7, None, None, 0.5]
    assert results_table(evaluated_columns([loaded]), [loaded]).rows[0].cells[1].text == "NaN"
    write_report([run], tmp_path / "out.html")


def test_interrupted_and_failed_runs_say_so(tmp_path: Path) -> None:
    interrupted = make_run(tmp_path / "a", steps=3, prompts=3)
    failed = make_run(tmp_path / "b", loss="dpo", steps=3, prompts=3)
    write_json(interrupted / "status.json", {"state": "interrupted", "step": 3, "max_steps": 64})
    write_json(failed / "status.json", {"state": "failed", "step": 1, "max_steps": 64, "error": "out of memory"})
    text = visible_text(write_report([interrupted, failed], tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "Training was interrupted at update 3 of 64: the numbers here are not final." in text
    assert "Training failed at update 1 of 64" in text
    assert "Error: out of memory" in text


JUNK = st.one_of(
    st.none(), st.booleans(), st.just(math.nan), st.just(math.inf), st.just(10**400), st.just(-(10**18)),
    st.just("<b>\ud800%{x}</b>"), st.just([]), st.just([1, [2]]), st.just({}), st.just({"a": {"b": None}}),
)  # fmt: skip


def paths_in(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [prefix, *(path for key, inner in value.items() for path in paths_in(inner, (*prefix, key)))]
    return [prefix]


def put(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """content[path[0]]…[path[-1]] = value, unless something on the way is no object any more."""
    inner: Any = content
    for key in path[:-1]:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[path[-1]] = value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_no_junk_in_any_file_makes_the_report_fail(
    tmp_path: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands where a number, a text or an object should be: a page comes out."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    kind = data.draw(st.sampled_from(["tdpo2", "ppo"]))
    runs = [make_run(tmp_path / kind, loss=kind, steps=8, prompts=2)]
    runs.append(make_run(tmp_path / "b", loss="dpo", steps=3, prompts=2))
    for name in ("environment.json", "data.json", "status.json", "evaluation.json"):
        if not (runs[0] / name).exists():
            continue
        content = read_json(runs[0] / name)
        for path in data.draw(st.lists(st.sampled_from(paths_in(content)[1:]), max_size=5)):
            put(content, path, deepcopy(data.draw(JUNK)))  # put may write into what was put before
        write_json(runs[0] / name, content)
    for name in ("metrics.jsonl", "samples.jsonl", "completions.jsonl"):
        if not (runs[0] / name).exists():
            continue
        rows = [json.loads(line) for line in (runs[0] / name).read_text().splitlines()]
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JUNK)
        write_lines(runs[0] / name, rows)
    assert write_report(runs, tmp_path / "out.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda root: [], ValueError, "at least one"),
        (lambda root: [root / "nowhere"], FileNotFoundError, "no such run directory"),
        (lambda root: [root], FileNotFoundError, "expected at least one of recipe.yaml"),
        (lambda root: [make_run(root / "r", steps=1, prompts=1)] * 2, ValueError, "given twice"),
    ],
)
def test_errors_say_what_was_expected(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        write_report(make(tmp_path), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_out_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"report\.html"):
        write_report([make_run(tmp_path / "r", steps=1, prompts=1)], tmp_path)


# ---- several runs --------------------------------------------------------------------------------------------


def test_runs_judged_against_the_same_base_share_its_column(run_dirs: list[Path], tmp_path: Path) -> None:
    assert [column.label for column in evaluated_columns(load_runs(run_dirs))] == ["Base", "TDPO2", "DPO"]
    samples = collect_samples(load_runs(run_dirs))
    assert samples is not None
    assert [column["label"] for column in samples.payload["columns"]] == ["Base", "TDPO2", "DPO"]
    assert all(len(cell) == 4 for cell in samples.payload["prompts"][0]["cells"])
    other = make_run(tmp_path / "other", loss="dpo", seed=7)
    mixed = load_runs([run_dirs[0], other])
    assert [c.label for c in evaluated_columns(mixed)] == ["Base of TDPO2", "TDPO2", "Base of DPO", "DPO"]
    assert "several base columns" in page_content(mixed)["notices"][0][1][0]


def test_labels_are_the_losses_where_those_differ_and_folders_elsewhere(tmp_path: Path) -> None:
    names = [("x/run", "dpo"), ("y/run", "dpo"), ("z", "tdpo2")]
    dirs = [make_run(tmp_path / name, loss=loss, steps=1, prompts=1) for name, loss in names]
    assert [run.label for run in load_runs([dirs[0], dirs[2]])] == ["DPO", "TDPO2"]
    assert [run.label for run in load_runs([dirs[0], make_run(tmp_path / "w", loss="dpo")])] == ["run", "w"]
    labels = [run.label for run in load_runs(dirs)]
    assert labels[:2] == ["x/run", "y/run"]
    assert len(set(labels)) == 3


def test_shares_and_their_intervals_are_percentages(run_dirs: list[Path]) -> None:
    table = pairs_table(load_runs(run_dirs))
    assert table is not None
    assert (table.rows[0].cells[0].text, table.rows[0].cells[0].small) == ("75\u2009%", "[64\u2009%, 86\u2009%]")


def test_recipe_differences_and_shared_facts(run_dirs: list[Path]) -> None:
    runs = load_runs(run_dirs)
    tables = recipe_differences(runs)
    assert tables is not None
    table, partial = tables
    assert partial.rows == []
    assert {row.title: [cell.text for cell in row.cells] for row in table.rows} == {
        "loss.name": ["tdpo2", "dpo"],
        "loss.alpha": ["0.5", "none"],
    }
    assert table.colors == [0, 1]
    facts = {row.title: row for row in provenance_table(runs).rows}
    assert facts["Machine"].shared
    assert [cell.text for cell in facts["Method"].cells] == ["TDPO2, β = 0.10, α = 0.50", "DPO, β = 0.10"]
    assert facts["Training data"].cells[0].text == (
        "source pairs.jsonl, rows 256, skipped 3, truncated rows 2, problems by reason: rejected is empty 2, "
        "problems by reason: chosen is rejected 1, truncated tokens 41, dropped long prompts 1"
    )


def test_a_figure_of_changes_shows_the_zero_that_they_are_compared_with() -> None:
    point = Point("PPO", 0, 0.31, None)
    figure = dot_figure("result-change", Metric("change", "Change"), [point], line=0.0)
    assert figure is not None and figure.layout["xaxis"]["rangemode"] == "tozero"
    assert "range" not in figure.layout["xaxis"], "a range would leave the zero out"


def test_one_response_to_each_prompt_is_said_in_the_singular(run_dirs: list[Path]) -> None:
    run = load_runs(run_dirs)[0]
    settings = {"prompts": 1, "samples_per_prompt": 1, "max_new_tokens": 8}
    content = page_content([replace(run, evaluation={**run.evaluation, "settings": settings})])
    assert content["evaluation_settings"] == ["1 held-out prompt, 1 response to each, at most 8 tokens long"]


def test_settings_that_not_every_recipe_has_are_folded_away() -> None:
    recipes = [
        {"seed": 0, "loss": {"name": "tdpo2", "beta": 0.1}}, {"seed": 1, "loss": {"name": "dpo", "beta": 0.1}},
        {"seed": 1, "ppo": {"epochs": 2}}, {},
    ]  # fmt: skip
    tables = recipe_differences([Run(Path("r"), "", i, recipe=recipe) for i, recipe in enumerate(recipes)])
    assert tables is not None
    assert [[row.title for row in table.rows] for table in tables] == [
        ["seed", "loss.name"], ["loss.beta", "ppo.epochs"]
    ]  # fmt: skip


def test_a_strength_without_effect_is_not_part_of_a_method() -> None:
    """Recipes of earlier versions held an α for every loss."""
    recipes = [
        {"loss": {"name": name, "beta": 0.1, "alpha": 0.5}} for name in ("tdpo2", "tdpo1", "dpo", "ipo", "other")
    ]
    table = provenance_table([Run(Path("r"), "", i, recipe=recipe) for i, recipe in enumerate(recipes)])
    [method] = [row for row in table.rows if row.title == "Method"]
    assert [cell.text.partition(", ")[2] for cell in method.cells] == [
        "β = 0.10, α = 0.50", *["β = 0.10"] * 3, "β = 0.10, α = 0.50"
    ]  # fmt: skip


def test_a_method_without_a_reference_has_its_margin_aim() -> None:
    run = Run(Path("r"), "", 0, recipe={"loss": {"name": "simpo", "beta": 2.0, "alpha": None, "gamma": 1.0}})
    [method] = [row for row in provenance_table([run]).rows if row.title == "Method"]
    assert [cell.text for cell in method.cells] == ["SimPO, β = 2.00, γ = 1.00"]


def test_a_kl_beside_the_loss_is_part_of_a_method() -> None:
    kls = [None, {"direction": "reverse", "on": "both", "coefficient": 0.1},
           {"direction": "js", "on": "chosen", "coefficient": 1.0, "weight": 0.5}]  # fmt: skip
    recipes = [{"loss": {"name": "dpo", "beta": 0.1, "kl": kl}} for kl in kls]
    table = provenance_table([Run(Path("r"), "", i, recipe=recipe) for i, recipe in enumerate(recipes)])
    [method] = [row for row in table.rows if row.title == "Method"]
    assert [cell.text for cell in method.cells] == [
        "DPO, β = 0.10",
        "DPO, β = 0.10, 0.10 × reverse KL along both responses",
        "DPO, β = 0.10, 1.00 × Jensen–Shannon divergence along the chosen response",
    ]


def test_lost_rows_stand_at_the_top(html: str) -> None:
    assert "Training data: skipped 3, truncated rows 2, truncated tokens 41, dropped long prompts 1." in visible_text(
        html
    )


# ---- PPO beside preferences ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("three")
    return [make_run(root / loss, loss=loss) for loss in ("tdpo2", "dpo", "ppo")]


def test_ppo_stands_beside_preference_runs(three: list[Path], tmp_path: Path) -> None:
    runs = load_runs(three)
    assert [column.label for column in evaluated_columns(runs)] == ["Base", "TDPO2", "DPO", "PPO"]
    rows = {row.title: [cell.text for cell in row.cells] for row in results_table(evaluated_columns(runs), runs).rows}
    generations = [read_json(path / "evaluation.json")["generations"] for path in three]
    trained = [numbers["trained"] for numbers in generations]
    variances = [numbers["reward_variance"] for numbers in (generations[0]["base"], *trained)]
    assert rows["Variance of the rewards"] == [show(value) for value in variances]
    assert rows["Mean reward"][1:] == [show(numbers["reward_mean"]) for numbers in trained]
    pairs = pairs_table(runs)
    assert pairs is not None and pairs.heads == ["TDPO2", "DPO"]
    content = page_content(runs)
    glance = dict(content["at_a_glance"])
    assert glance["Training pairs"] == "256" and glance["Responses scored by PPO"] == "1\u2009024"
    text = visible_text(write_report(three, tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "not from pairs: there are none to show for PPO." in text
    assert "Clip fraction The share of tokens" in text


def test_what_a_ppo_run_lacks_by_nature_is_no_gap(three: list[Path], tmp_path: Path) -> None:
    assert load_runs(three[2:])[0].notes == []
    quiet = make_run(tmp_path / "quiet", loss="ppo", eval_every=0)
    (quiet / "completions.jsonl").unlink()
    [note] = load_runs([quiet])[0].notes
    assert note.endswith("the curves show responses to training prompts only.")
    text = visible_text(write_report([quiet], tmp_path / "out.html").read_text(encoding="utf-8"))
    for misleading in ("No held-out pairs were evaluated", "data.json is missing", "chosen", "while training Some"):
        assert misleading not in text.split("Glossary Forward KL")[0], misleading


def test_facts_of_a_ppo_run(three: list[Path]) -> None:
    facts = {row.title: row.cells[2].text for row in provenance_table(load_runs(three)).rows}
    assert facts["Method"] == (
        "PPO, reverse KL, sampled, taken off the reward, coefficient 0.05, adapted to hold 6.00 nats"
    )
    assert facts["Responses sampled"] == "16 iterations of 64, each learned from in 2 passes"
    assert (facts["Batch"], facts["Learning rate"]) == ("32", "0.0003")
    assert facts["Median throughput"].endswith("tokens per second learning, 310 sampling")
    assert facts["Training data"] == "source sentiment, skipped 0, prompts 128"


@pytest.mark.parametrize("advantage", ["rloo", "group"])
def test_advantages_without_a_critic_are_named(advantage: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", loss="ppo", prompts=2)
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(
        recipe.replace("ppo:\n", f"ppo:\n  advantage: {advantage}\n").replace("epochs: 2", "epochs: 1")
    )
    lines = [{k: v for k, v in line.items() if "value" not in k} for line in load_runs([folder])[0].metrics]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = load_runs([folder])
    facts = {row.title: row.cells[0].text for row in provenance_table(runs).rows}
    name = "leave-one-out advantages (RLOO)" if advantage == "rloo" else "advantages within groups"
    assert facts["Method"].startswith(f"PPO, {name}, no critic, reverse KL")
    assert facts["Responses sampled"].endswith("learned from in 1 pass")
    figures = {figure.id: figure for group in curve_groups(runs) for figure in group.figures}
    assert figures["curve-clip_fraction"].note == "Without a gradient."


def test_axes_of_values_alike_have_short_ticks_and_those_of_distinct_words_end_at_1() -> None:
    assert readable_range("policy_entropy", [10.79621679, 10.79621681]) == pytest.approx([10.688, 10.904], abs=1e-3)
    assert readable_range("policy_entropy", [1.7, 2.6]) is None and readable_range("margin", [0.0, 0.0]) is None
    low, high = readable_range("distinct_2", [1.0]) or (0, 0)
    assert low < 1 < high < 1.001
    points = [Point("base", 0, 1.0, (0.5, 1.0))]
    figure = dot_figure("result-distinct_2", Metric("distinct_2", "Distinct word pairs"), points)
    assert figure is not None and figure.layout["xaxis"]["range"] == pytest.approx([0.45, 1.0275])


def test_two_ppo_runs_are_told_apart_by_their_kl(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, loss="ppo", prompts=2) for name in ("one", "other")]
    assert [run.label for run in load_runs(runs)] == ["one", "other"], "two runs alike are told apart by their folders"
    changed(runs[1], "evaluation.json", "run", "kl", "direction", to="forward")
    content = (runs[1] / "recipe.yaml").read_text().replace("direction: reverse", "direction: forward")
    (runs[1] / "recipe.yaml").write_text(content)
    assert [run.label for run in load_runs(runs)] == ["PPO, reverse KL", "PPO, forward KL"]
    dpo = make_run(tmp_path / "dpo", loss="dpo", prompts=2)
    assert [run.label for run in load_runs([dpo, *runs])] == ["DPO", "PPO, reverse KL", "PPO, forward KL"]


def test_the_target_of_a_kl_beside_the_loss_is_drawn_with_it(tmp_path: Path) -> None:
    """Of the run that has one alone; beside its KL and nowhere else."""
    held, free = (make_run(tmp_path / name, loss="dpo", prompts=2) for name in ("held", "free"))
    for run_dir in (held, free):
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"kl_term": 2.9, "kl_coefficient": 0.2}
            if run_dir == held and line.get("split") == "train":
                line["kl_target"] = 3.0
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = {figure.id: figure for group in curve_groups(load_runs([held, free])) for figure in group.figures}
    named = {name for name, figure in figures.items() if any("target" in head for head in figure.heads)}
    assert named == {"curve-kl_term"}
    assert figures["curve-kl_term"].heads[1:3] == ["held", "held, target"]
    assert "curve-kl_coefficient" in figures


def test_curves_of_ppo_share_figures_only_where_they_mean_the_same(three: list[Path]) -> None:
    figures = {figure.id: figure for group in curve_groups(load_runs(three)) for figure in group.figures}
    assert figures["curve-loss"].heads == ["Update", "TDPO2", "TDPO2, held-out", "DPO", "DPO, held-out"]
    reverse = [head for head in figures["curve-reverse_kl"].heads if head.startswith("PPO")]
    assert reverse == ["PPO, own responses", "PPO, target", "PPO, own responses, held-out (one response a prompt)"]
    assert not any("target" in head for head in figures["curve-forward_kl"].heads)
    assert figures["curve-reward_mean"].heads[1:] == [
        "PPO",
        "PPO, less penalties",
        "PPO, held-out (one response a prompt)",
    ]
    estimates = figures["curve-kl_estimates"]
    assert [trace["line"]["dash"] for trace in estimates.data[:3]] == ["solid", "dot", "dash"]


def test_responses_from_training_are_shown_escaped(three: list[Path], tmp_path: Path) -> None:
    run = load_runs(three[2:])[0]
    table = training_responses(run)
    assert table is not None
    titles = [(row.title, row.unit) for row in table.rows]
    assert list(dict.fromkeys(titles)) == [
        ("Iteration 0", "after 0 updates"), ("Iteration 8", "after 32 updates"), ("Iteration 15", "after 60 updates"),
    ]  # fmt: skip
    assert table.rows[0].cells[0].text == run.completions[0]["prompt"][0]["content"]
    assert training_responses(load_runs(three)[0]) is None
    odd = make_run(tmp_path / "odd", loss="ppo", steps=8, prompts=2)
    junk: dict[str, Any] = {"prompt": [], "text": "<script>\ud800</script>", "reward": math.nan, "finished": False}
    write_lines(odd / "completions.jsonl", [{"iteration": 0, **junk}, {"iteration": "x"}, {"text": 3}])
    html = write_report([odd], tmp_path / "out.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;?&lt;/script&gt; <small>cut off</small>" in html


def test_summary_of_a_ppo_run_without_an_evaluation_says_its_reward(three: list[Path]) -> None:
    run = replace(load_runs(three[2:])[0], evaluation={})
    assert run.label == "PPO"
    assert summary_sentences([run])[0].startswith("PPO took its mean training reward from 0.")


# ---- figures -------------------------------------------------------------------------------------------------


def all_figures(run_dirs: list[Path]) -> list[Figure]:
    figures: list[Figure] = page_content(load_runs(run_dirs))["figures"]
    return figures


def test_every_figure_is_valid_plotly_and_says_its_numbers_in_words_and_in_a_table(run_dirs: list[Path]) -> None:
    from plotly.graph_objects import Figure as PlotlyFigure

    figures = all_figures(run_dirs)
    assert len({figure.id for figure in figures}) == len(figures) == 29
    for figure in figures:
        PlotlyFigure(data=figure.data, layout=figure.layout)
        assert figure.rows and all(len(row) == len(figure.heads) for row in figure.rows), figure.id
        assert re.search(r"\d", figure.alt), figure.id


def test_dots_and_intervals_are_the_evaluations(run_dirs: list[Path]) -> None:
    figure = next(f for f in all_figures(run_dirs) if f.id == "result-reward_mean")
    generations = read_json(run_dirs[1] / "evaluation.json")["generations"]["trained"]
    trace = figure.data[2]
    low, high = generations["reward_mean_interval"]
    assert trace["x"] == [generations["reward_mean"]]
    assert trace["x"][0] + trace["error_x"]["array"][0] == pytest.approx(high)
    assert trace["x"][0] - trace["error_x"]["arrayminus"][0] == pytest.approx(low)
    assert figure.rows[2] == ["DPO", show(generations["reward_mean"]), show_interval([low, high])]


def test_curves_hold_what_was_logged_and_a_resumed_step_counts_once() -> None:
    lines = [{"step": s, "split": "train", "loss": v} for s, v in [(1, 0.7), (2, 0.6), (3, 0.5), (2, 0.61)]]
    run = Run(Path("r"), "DPO", 0, metrics=[*lines, {"step": 3, "split": "eval", "loss": 0.55}])
    figure = curve_groups([run])[0].figures[0]
    assert [(trace["x"], trace["y"]) for trace in figure.data] == [([1, 2, 3], [0.7, 0.61, 0.5]), ([3], [0.55])]
    assert figure.rows == [["1", "0.70", MISSING], ["3", "0.50", "0.55"]]
    assert "DPO: from 0.70 at update 1 to 0.50 at update 3. DPO, held-out: 0.55 at update 3." in figure.alt


def test_smoothing_and_thinning() -> None:
    points = [(float(step), float(value)) for step, value in enumerate([0, 3, 6, 9, 3])]
    assert running_mean(points) == [(0, 1.5), (1, 3), (2, 6), (3, 6), (4, 6)]
    assert running_mean([(1, 2.0), (2, None), (3, 4.0)]) == [(1, 2.0), (2, None), (3, 4.0)]
    assert thinned(points, 2) == [(1, 1.5), (3, 6.0)]
    assert thinned(points, 5) == points


def test_likelihood_displacement_is_named_only_when_both_sides_fall() -> None:
    def run(chosen: list[float], rejected: list[float], split: str = "eval") -> Run:
        pairs = zip(chosen, rejected, strict=True)
        lines = [{"step": s, "split": split, "chosen_logp": c, "rejected_logp": r} for s, (c, r) in enumerate(pairs)]
        return Run(Path("r"), "DPO", 0, metrics=lines)

    assert "fell by 5.00 nats per response, from −50.0 to −55.0" in displacement([run([-50, -55], [-50, -70])])[0]
    assert "which is likelihood displacement" in displacement([run([-50, -55], [-50, -70])])[0]
    assert "displacement" not in displacement([run([-50, -45], [-50, -70])])[0]
    assert displacement([run([-50], [-50])]) == []
    # Batches of other pairs differ by themselves: a few of them say nothing about training.
    assert displacement([run([-50, -55, -60], [-50, -70, -60], "train")]) == []
    assert "training batches of other pairs" in displacement([run([-50] * 10 + [-55] * 10, [-50] * 20, "train")])[0]


def test_displacement_says_what_the_numbers_say() -> None:
    def run(change: float, limits: list[float] | None, end: float = -42.0) -> Run:
        lines = [
            {"step": step, "split": "eval", "chosen_logp": -43.0 + step, "rejected_logp": -48.0 - step}
            for step in (0, 1)
        ]
        pairs = {"chosen_logp": end, "chosen_reference_logp": end - change, "chosen_log_ratio": change}
        pairs |= {"rejected_logp": -49.0, "rejected_reference_logp": -40.0, "rejected_log_ratio": -9.0}
        pairs |= {"held_out": True, "intervals": {"chosen_log_ratio": limits, "rejected_log_ratio": [-12.0, -6.0]}}
        return Run(Path("r"), "DPO", 0, metrics=lines, evaluation={"pairs": pairs})

    rose, fell, unclear = run(4.0, [3.0, 5.0]), run(-2.0, [-3.0, -1.0]), run(-2.0, [-5.0, 1.0])
    assert "chosen responses rose by 4.00 nats per response, from −46.0 to −42.0" in displacement([rose])[0]
    assert "displacement" not in displacement([rose])[0] and "from the base model" in displacement([rose])[0]
    assert displacement_note([rose]) == "Chosen +4.00, rejected −9.00 nats."
    assert "fell by 2.00 nats per response, from −40.0 to −42.0" in displacement([fell])[0]
    assert displacement([fell])[0].count("which is likelihood displacement") == 1
    assert displacement_note([fell]) == "Chosen −2.00, rejected −9.00 nats: both fell."
    assert "chosen responses is unclear (−2.00 nats per response" in displacement([unclear])[0]
    assert "displacement" not in displacement([unclear])[0]
    assert displacement_note([unclear]) == "Chosen −2.00 (unclear), rejected −9.00 nats."
    assert displacement_note([fell, replace(rose, label="IPO")]).startswith("DPO: chosen −2.00")
    # Numbers of the evaluation's pairs are never subtracted from those of the trainer's, however close they are.
    other_pairs = run(-2.0, [-3.0, -1.0], end=-42.1)
    other_pairs.evaluation["pairs"] |= {"held_out": None, "source": "other.jsonl"}
    assert "fell by 2.00 nats per response, from −40.1 to −42.1" in displacement([other_pairs])[0]
    assert "(pairs from other.jsonl, from the base model to the trained one)" in displacement([other_pairs])[0]
    without = replace(rose, evaluation={"pairs": {"chosen_logp": -42.0, "rejected_logp": -49.0}})
    assert "from the first evaluation to the last" in displacement([without])[0]
    swings = [(step, -50.0 + 9 * (-1) ** step - 0.1 * step, -50.0 - step) for step in range(40)]
    noise = [{"step": step, "split": "train", "chosen_logp": c, "rejected_logp": r} for step, c, r in swings]
    batches = displacement([Run(Path("r"), "DPO", 0, metrics=noise)])[0]
    assert "chosen responses is unclear" in batches and "rejected ones fell by 32.0" in batches
    figures = {figure.id: figure for group in curve_groups([rose]) for figure in group.figures}
    assert figures["curve-logp"].note == displacement_note([rose])


def test_too_few_prompts_and_an_unchanged_reward_are_said(three: list[Path]) -> None:
    few = {"settings": {"prompts": 3}, "pairs": {"prompts": 2, "accuracy": 1.0, "intervals": {"margin": None}}}
    numbers = {who: {"reward_mean": 0.5, "reverse_kl_interval": None} for who in ("base", "trained")}
    difference = {"reward_mean": {"estimate": 0.0, "interval": None, "confidence": 0.95}}
    same = Run(Path("r"), "DPO", 0, evaluation={**few, "generations": numbers, "difference": difference})
    assert summary_sentences([same]) == ["DPO left the held-out reward at 0.50."]
    said = " ".join(_gaps(same))
    assert "Held-out prompts that were answered: 3. They are too few, or too much alike, for intervals" in said
    assert "Prompts of the held-out pairs: 2." in said
    table = results_table(evaluated_columns(load_runs(three)), load_runs(three))
    assert table.caption == "Responses to held-out prompts, 4 to each"


@pytest.mark.parametrize(
    ("share", "shown"), [(1.0, "100"), (0.0, "0"), (0.997, "99.7"), (0.0004, "0.04"), (0.71, "71"), (0.9999, "99.99")]
)
def test_what_is_not_all_is_not_shown_as_all(share: float, shown: str) -> None:
    assert show_share(share) == f"{shown}\u2009%"


def test_distribution_counts_every_reward_once() -> None:
    figure = distribution_figure([("Base", -1, [0.0, 1.0, 1.0, 0.06]), ("A", 0, [0.5])], "VADER")
    assert figure is not None
    base = figure.data[0]["y"]
    assert (base[0], base[1], base[19], sum(base[:20])) == (0.25, 0.25, 0.5, 1.0)
    assert figure.data[1]["y"][10] == 1.0
    assert distribution_figure([("Base", -1, [0.5, 0.5])], "VADER") is None
    assert distribution_figure([("Base", -1, [])], "VADER") is None


@pytest.mark.parametrize("vision", VISIONS)
def test_run_colours_differ_for_every_colour_vision(vision: str) -> None:
    colors = [lab(color, VISIONS[vision]) for color in (BASE_GREY, *RUN_COLORS)]
    assert min(math.dist(one, other) for one, other in combinations(colors[:5], 2)) > 20
    assert min(math.dist(one, other) for one, other in combinations(colors, 2)) > 6  # the symbols differ too


@pytest.mark.parametrize("color", [BASE_GREY, *RUN_COLORS])
def test_marks_are_visible_on_light_and_dark_pages(color: str) -> None:
    assert min(contrast(color, page) for page in ("#fcfcfa", "#ffffff", "#15181b")) >= 3


# ---- the file ------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_with_a_sound_outline(html: str) -> None:
    outline = Outline(html)
    assert outline.loads == []
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_the_policy_allows_exactly_the_scripts_of_the_page(html: str) -> None:
    outline = Outline(html)
    scripts = [text for kind, text in outline.scripts if kind == "javascript"]
    assert len(scripts) == 2
    directives = dict(part.strip().split(" ", 1) for part in outline.policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == [script_hash(script) for script in scripts]
    for kind, text in outline.scripts:
        if kind == "application/json":
            json.loads(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_is_the_same_data_and_cannot_end_its_script(value: Any) -> None:
    embedded = embed_json(value)
    assert json.loads(embedded) == value
    assert embedded.isascii()
    assert not set(embedded) & set("<>&")


def test_embedded_json_has_no_constants_that_javascript_lacks() -> None:
    assert embed_json({"a": [math.nan, math.inf, 1.5]}) == '{"a":[null,null,1.5]}'


def test_a_script_that_would_end_its_element_is_refused() -> None:
    assert checked_script("x", "a\r\nb\rc") == "a\nb\nc"
    with pytest.raises(ValueError, match="x contains </script"):
        checked_script("x", 'print("</SCRIPT>")')


def test_text_in_plots_cannot_use_plotlys_markup() -> None:
    assert plot_text('<a href="javascript:x">%{x}</a>', 60) == '&lt;a href="javascript:x"&gt;% {x}&lt;/a&gt;'
    assert len(plot_text("x" * 100, 22)) == 22


def test_the_same_runs_give_the_same_bytes_and_the_file_is_replaced_whole(
    run_dirs: list[Path], html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "report.html"
    assert write_report([str(path) for path in run_dirs], str(out)) == out  # type: ignore[list-item,arg-type]
    assert out.read_text(encoding="utf-8") == html
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(run_dirs[:1], out)
    assert out.read_text(encoding="utf-8") == html
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_the_file_stays_below_8_mb_with_many_runs_long_curves_and_long_texts(tmp_path: Path) -> None:
    dirs = [make_run(tmp_path / f"run-{i}", loss="dpo", steps=3, prompts=2) for i in range(6)]
    run = load_runs(dirs[:1])[0]
    lines = [{**run.metrics[0], "step": step, "loss": math.sin(step), "margin": step / 7} for step in range(2000)]
    row = {**run.samples[0], "text": '<&\u2028ü"' * 2000}
    samples = [{**row, "prompt_id": str(i), "model": model} for i in range(100) for model in ("base", "trained")]
    for path in dirs:
        write_lines(path / "metrics.jsonl", lines)
        write_lines(path / "samples.jsonl", samples)
    out = write_report(dirs, tmp_path / "report.html")
    assert out.stat().st_size < 8_000_000
    assert re.search(r"holds the first \d+ of 100 prompts", visible_text(out.read_text(encoding="utf-8")))


def test_an_ordinary_report_is_not_much_more_than_plotly(html: str) -> None:
    assert len(html.encode()) < 5_300_000


def test_the_report_never_imports_torch(run_dirs: list[Path], tmp_path: Path) -> None:
    """In a fresh interpreter whose `tdpo` is a bare package, so that only what the report itself imports is loaded."""
    script = f"""
import sys, types
package = types.ModuleType("tdpo")
package.__path__ = [{str(PACKAGE)!r}]
package.__version__ = "1"  # which the page says
sys.modules["tdpo"] = package
from tdpo.report import write_report
light = {{"plotly", "jinja2", "yaml"}} & set(sys.modules)
write_report({[str(path) for path in run_dirs]!r}, {str(tmp_path / "o.html")!r})
heavy = {{"torch", "transformers", "numpy", "pandas"}} & set(sys.modules)
print(sorted(light), sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_a_run_that_was_killed_is_not_shown_as_running(tmp_path: Path) -> None:
    import fcntl

    from tdpo.report.run_reading import load_runs

    (tmp_path / "status.json").write_text('{"state": "running", "step": 3}', encoding="utf-8")
    assert load_runs([tmp_path])[0].status["state"] == "running", "without a lock nothing is known"
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert load_runs([tmp_path])[0].status["state"] == "running"
    assert load_runs([tmp_path])[0].status == {"state": "killed", "step": 3}
    page = write_report([tmp_path], tmp_path / "out.html").read_text(encoding="utf-8")
    assert "Training was killed at update 3" in visible_text(page) and "--resume" in visible_text(page)


def test_commands_in_a_sentence_are_code_and_nothing_else_is_markup() -> None:
    page = template_environment().from_string("{{ s | with_commands }}")
    assert page.render(s="`tdpo train a<b` goes on: <i>") == "<code>tdpo train a&lt;b</code> goes on: &lt;i&gt;"
