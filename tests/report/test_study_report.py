"""The report of a study: its words, numbers and file; everything that needs no browser."""

from __future__ import annotations

import base64
import csv
import json
import math
import random
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tdpo.report
from helpers.report_checks import VISIONS, Outline, contrast, lab, visible_text
from helpers.study_fixtures import ARMS, HOSTILE, make_study, read, write
from tdpo import methods
from tdpo.report import drawing, is_study, write_study_report
from tdpo.report.embedding import script_hash
from tdpo.report.numbers import show
from tdpo.report.study.arm_styles import COLORS, SYMBOLS
from tdpo.report.study.claims import read_claims, tally
from tdpo.report.study.curves import POINTS, task_curves
from tdpo.report.study.distributions import distributions
from tdpo.report.study.diversity import diversity_tables
from tdpo.report.study.frontiers import frontier_data, task_frontiers
from tdpo.report.study.page import study_content
from tdpo.report.study.samples import collect_samples
from tdpo.report.study.strengths import choices
from tdpo.report.study.study_reading import load_study
from tdpo.report.templating import template_environment

PACKAGE = Path(tdpo.report.__file__).parents[1]


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return write_study_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="", errors="replace") as file:
        return list(csv.DictReader(file))


def keep(path: Path, wanted: Any) -> None:
    """Leave only the lines of a table that `wanted` holds of."""
    lines = table(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(line for line in lines if wanted(line))


def text_of(path: Path) -> str:
    return visible_text(write_study_report(path).read_text(encoding="utf-8"))


def unpacked(data: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(data)))
    return payload


# ---- words ---------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_compared_and_what_came_of_it(html: str) -> None:
    assert (
        "7 methods were compared on 3 tasks (keywords, sentiment and colours), starting from smollm2-135m, the "
        "reference. Each ran at 3 strengths of its tie to the reference and with 2 seeds. Every training had the same "
        "budget: 256 scored responses. All were measured on 24 held-out prompts, with 4 responses to each. Of 3 "
        "claims 1 is supported, 1 is contradicted and 1 is undecided."
    ) in visible_text(html)


def test_a_failed_cell_stands_at_the_top_with_what_to_do(html: str) -> None:
    text = visible_text(html).split("Frontiers What a method")[0]
    assert "1 cell failed; every mean is over the seeds that are there." in text
    assert "keywords/dpo-0.03-s1 failed while training RewardError: &lt;b&gt;the reward&lt;/b&gt;" in text
    assert "What to do next: look at the log, mend the reward and give the same command again." in text
    assert "cells/keywords/dpo-0.03-s1/cell.log" in text


def test_how_it_was_made_names_command_machine_settings_and_cost(html: str) -> None:
    text = visible_text(html).split("How it was made")[-1]
    for words in ("tdpo compare recipes/study_quick.yaml", "cpu AMD EPYC 7B13, cores 2, memory gib 7.8",
                  "python 3.11.7, torch 2.13.0", "learning rate 2e-05, 0.0001, 0.0005", "β 0.3, 0.1, 0.03",
                  "4 352 256 a cell", "tasks: [keywords"):  # fmt: skip
        assert words in text, words


def test_the_page_is_one_file_with_a_sound_outline_and_a_policy_of_its_scripts(html: str) -> None:
    outline = Outline(html)
    assert outline.loads == []
    assert outline.levels.count(1) == 1 == outline.levels[0]
    assert all(after - before <= 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    directives = dict(part.strip().split(" ", 1) for part in outline.policy.split(";"))
    scripts = [text for kind, text in outline.scripts if kind == "javascript"]
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == [script_hash(script) for script in scripts]
    assert outline.ids.index("frontiers") < outline.ids.index("claims") < outline.ids.index("strengths")
    assert outline.ids.index("training") < outline.ids.index("samples") < outline.ids.index("provenance")


def test_the_explanation_of_the_two_kls_is_there(html: str) -> None:
    assert Outline(html).ids.count("two-kls") == 1 and 'href="#two-kls"' in html


# ---- frontiers -----------------------------------------------------------------------------------------------


def test_frontiers_hold_the_results_from_the_tightest_strength_to_the_loosest(folder: Path) -> None:
    study = load_study(folder)
    frontiers = [task_frontiers(study, task) for task in study.tasks]
    assert [len(shown.figures) for shown in frontiers] == [2, 2, 4]  # known modes on the last task only
    points = frontier_data(study, frontiers)["tasks"][0]["points"]
    own = {arm: [p["strength"] for p in points if p["arm"] == arm] for arm in ARMS}
    assert own["reference"] == [""] and own["tdpo2"] == ["0.3", "0.1", "0.03"]
    assert own["sft"] == ["2e-05", "0.0001", "0.0005"]
    line = next(
        row
        for row in table(folder / "results.csv")
        if (row["task"], row["arm"], row["strength"], row["seed"], row["metric"])
        == ("keywords", "tdpo2", "0.1", "all", "reverse_kl")
    )
    point = next(p for p in points if (p["arm"], p["strength"]) == ("tdpo2", "0.1"))
    assert point["values"]["reverse_kl"] == pytest.approx([float(line[k]) for k in ("value", "low", "high")], rel=1e-4)


def test_every_figure_has_its_numbers_in_words_and_in_a_table(folder: Path) -> None:
    study = load_study(folder)
    content, _ = study_content(study)
    figures = [f for shown in (*content["frontiers"], *content["curves"]) for f in shown.figures]
    assert len(figures) > 20
    for figure in figures:
        assert len(figure.alt) > 60 and len(figure.rows) >= 3, figure.id
        assert all(len(row) == len(figure.heads) for row in figure.rows)
    kl = content["frontiers"][0].figures[0]
    assert kl.heads == ["Method", "Strength", "Mean reward", "Reverse KL", "Forward KL", "Reverse KL per token",
                        "Forward KL per token"]  # fmt: skip
    reward, reverse = (study.estimate("keywords", "dpo", "0.03", m) for m in ("reward_mean", "reverse_kl"))
    assert reward is not None and reverse is not None
    row = next(row for row in kl.rows if row[:2] == ["DPO", "0.03"])
    assert row[2].startswith(f"{show(reward.value)} [") and row[3].startswith(f"{show(reverse.value)} [")
    assert "Self-BLEU ↓" in content["frontiers"][0].figures[1].heads


def test_without_the_mean_over_seeds_it_is_taken_without_an_interval(copy: Path) -> None:
    before = load_study(copy).estimate("keywords", "tdpo2", "0.1", "reward_mean")
    keep(copy / "results.csv", lambda line: line["seed"] != "all")
    study = load_study(copy)
    seeds = study.results["keywords", "tdpo2", "0.1", "reward_mean"]
    mean = study.estimate("keywords", "tdpo2", "0.1", "reward_mean")
    assert before is not None and before.limits
    assert mean is not None and mean.limits is None
    assert mean.value == pytest.approx((seeds["1"].value + seeds["2"].value) / 2)
    only = study.estimate("keywords", "dpo", "0.03", "reward_mean")  # one of its two seeds failed
    assert only is not None and only.limits == study.results["keywords", "dpo", "0.03", "reward_mean"]["2"].limits


def test_the_common_reverse_kl_is_the_middle_of_what_all_methods_reach(folder: Path) -> None:
    study = load_study(folder)
    choice = choices(study)["keywords"]
    kls = {
        arm.name: [study.results["keywords", arm.name, s, "reverse_kl"]["all"].value for s in arm.strengths]
        for arm in study.arms[1:]
    }
    low, high = max(min(own) for own in kls.values()), min(max(own) for own in kls.values())
    assert choice.target == pytest.approx(math.sqrt(low * high))
    assert choice.target is not None
    for arm in study.arms[1:]:
        near = min(range(3), key=lambda i: abs(math.log(kls[arm.name][i] / choice.target)))
        assert choice.rules["matched"][arm.name] == arm.strengths[near]
        assert choice.rules["tight"][arm.name] == arm.strengths[0]
        assert choice.rules["loose"][arm.name] == arm.strengths[2] == choice.rules["best"][arm.name]


# ---- claims, rewards, diversity, curves ----------------------------------------------------------------------


def test_forest_plots_place_values_on_an_axis_with_zero(copy: Path) -> None:
    part = {"text": "A against B", "metric": "self_bleu", "matched": "", "unit": "", "value": 1.0, "low": -1.0,
            "high": 3.0, "verdict": "odd", "tasks": [{"task": "t", "value": 0.0, "low": None}]}  # fmt: skip
    write(copy / "claims.json", {"claims": [{"text": "A", "verdict": "supported", "parts": [part]}, 3]})
    [claim] = read_claims(load_study(copy))
    [shown] = claim.parts
    task, mean = shown.rows

    def at(value: float) -> Any:
        return pytest.approx(100 * (value + 1.24) / 4.48, abs=0.02)  # from -1 to 3, with 6 % of 4 on either side

    assert shown.verdict == "undecided", "a verdict that is not known is none"
    assert shown.measure == "Difference in self-BLEU, less of it is more diverse"
    assert (mean.dot, mean.left, mean.left + mean.width) == (at(1), at(-1), at(3))
    assert (shown.zero, task.dot, task.width) == (at(0), at(0), 0)
    assert (mean.text, mean.limits) == ("+1.00", "[−1.00, 3.00]")
    assert tally([claim]) == "The claim is supported."


def test_secondary_comparisons_are_folded_away(html: str, copy: Path) -> None:
    decides, beside = ({"text": text, "primary": primary} for text, primary in (("A", True), ("B", False)))
    write(copy / "claims.json", {"claims": [{"text": "A", "verdict": "supported", "parts": [decides, beside]}]})
    [claim] = read_claims(load_study(copy))
    assert [part.text for part in claim.primary] == ["A"] and [part.text for part in claim.secondary] == ["B"]
    folded = html.split("1 secondary comparison beside the verdict")[1].split("</details>")[0]
    assert "The same, quality-gated" in folded and "at matched reward" not in folded


def test_verdicts_are_words_and_shapes_not_only_colours(html: str) -> None:
    for word in ("supported", "contradicted", "undecided"):
        assert f"</svg> {word}</span>" in html
    assert "docs/the_study.md" in html


def test_rewards_of_single_responses_are_counted_in_bins(folder: Path) -> None:
    study = load_study(folder)
    rows = {(r.arm, r.strength): r for r in distributions(study, choices(study))[0].rows}
    own = [r.reward for r in study.responses
           if (r.task, r.arm, r.strength) == ("keywords", "tdpo2", "0.1") and r.reward is not None]  # fmt: skip
    row = rows["tdpo2", "0.1"]
    assert row.count == len(own) == 2 * 23 * 4, "the fixture's prompt 1 has no rewards"
    assert (row.shown, rows["tdpo2", "0.3"].shown, rows["reference", ""].shown) == (True, False, True)
    variance = study.estimate("keywords", "tdpo2", "0.1", "reward_variance")
    assert variance is not None and row.variance == show(variance.value)
    assert row.path.startswith("M0 40L0 ") and row.path.count("H") == 24


def test_diversity_has_raw_beside_gated_and_longer_bars_for_more_of_it(folder: Path) -> None:
    study = load_study(folder)
    tables = diversity_tables(study, study.tasks[0], choices(study)["keywords"])
    assert [t.caption for t in tables] == ["Among the responses to one prompt", "Across prompts"]
    keys = [c.metric.key for c in tables[0].columns]
    assert keys[:4] == ["reverse_kl", "reward_mean", "embedding_diversity", "gated_embedding_diversity"]
    assert ("Self-BLEU", "↓ lower is more diverse", 2) in tables[0].heads
    raw, bleu = keys.index("embedding_diversity"), keys.index("self_bleu")
    reference = tables[0].lines[0]
    assert (reference.cells[raw].bar, reference.cells[bleu].bar) == (100, 100), "the most diverse of all"
    assert min(line.cells[bleu].bar for line in tables[0].lines) == 0  # type: ignore[type-var]


def test_training_curves_are_means_over_the_seeds(folder: Path) -> None:
    study = load_study(folder)
    curves = task_curves(study, study.tasks[0])
    kl = curves.figures.index(next(f for f in curves.figures if f.id == "task-0-curve-reverse_kl"))
    line = next(line for line in curves.lines[kl] if (line.arm, line.strength) == ("tdpo2", "0.1"))
    seeds = study.curves["keywords", "tdpo2", "0.1", "reverse_kl"]
    for i, step in enumerate(line.steps):
        values = [next(value for at, _, value in curve if at == step) for curve in seeds.values()]
        assert line.mean[i] == pytest.approx(sum(values) / 2)
        assert [line.low[i], line.high[i]] == sorted(values)
    alone = next(line for line in curves.lines[kl] if (line.arm, line.strength) == ("dpo", "0.03"))
    assert alone.low == [], "one seed has no extremes"
    long = {"1": [(float(i), None, 0.5) for i in range(1000)]}
    study.curves["keywords", "tdpo2", "0.1", "loss"] = long
    thinned = next(
        line for lines in task_curves(study, study.tasks[0]).lines for line in lines if len(line.steps) == POINTS
    )
    assert (thinned.steps[0], thinned.steps[-1]) == (0, 999)


# ---- responses -----------------------------------------------------------------------------------------------


def test_responses_survive_being_packed(folder: Path) -> None:
    study = load_study(folder)
    samples = collect_samples(study, 5_000_000)
    assert samples is not None and samples.shown == samples.total == len(study.responses) == 131 * 96
    payload = unpacked(samples.data)
    columns = payload["columns"]
    texts: list[str] = []
    for text in columns["text"]:
        texts.append(texts[text] if isinstance(text, int) else text)
    found = Counter(
        (payload["prompts"][p][1], *payload["cells"][c], payload["seeds"][s], text, reward)
        for p, c, s, text, reward in zip(
            columns["prompt"], columns["cell"], columns["seed"], texts, columns["reward"], strict=True
        )
    )
    assert found == Counter((r.prompt_id, r.arm, r.strength, r.seed, r.text, r.reward) for r in study.responses)
    assert {text for text in HOSTILE if "\ud800" not in text} <= set(texts)


@pytest.mark.parametrize("share", [0.6, 0.3, 0.02])
def test_what_does_not_fit_is_left_out_for_all_methods_alike(folder: Path, share: float) -> None:
    study = load_study(folder)
    whole = collect_samples(study, 5_000_000)
    assert whole is not None
    samples = collect_samples(study, int(share * len(whole.data)))
    assert samples is not None and len(samples.data) <= share * len(whole.data)
    columns = unpacked(samples.data)["columns"]
    counts = Counter(zip(columns["prompt"], columns["cell"], columns["seed"], strict=True))
    assert set(counts.values()) == {samples.per_prompt}
    assert len(set(columns["cell"])) == len(study.cells)
    assert (samples.prompts is not None) == (share == 0.02)


def test_a_large_study_stays_below_8_mb_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = make_study(tmp_path / "large", prompts=24, samples=4)
    rng = random.Random(0)
    lines = table(path / "responses.csv")
    with (path / "responses.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        for line in lines:
            writer.writerow(line | {"text": base64.b64encode(rng.randbytes(300)).decode()})
    out = write_study_report(path)
    assert 6_000_000 < out.stat().st_size < 8_000_000
    text = visible_text(out.read_text(encoding="utf-8"))
    assert (
        text.count("the first response to a prompt of every cell, all methods alike. responses.csv has all of them.")
        == 2
    )


# ---- what is missing -----------------------------------------------------------------------------------------


def test_a_task_without_reward_shows_the_accuracy(copy: Path) -> None:
    keep(copy / "results.csv", lambda line: line["task"] != "keywords" or not line["metric"].startswith("reward"))
    study = load_study(copy)
    figures = task_frontiers(study, study.tasks[0]).figures
    assert figures[0].title == "Held-out accuracy against distance from the reference"
    assert {row[0] for row in figures[0].rows} == {"DPO", "TDPO1", "TDPO2"}
    assert "No reward: its frontiers show the accuracy on held-out pairs instead." in text_of(copy)


def test_every_metric_may_be_missing(copy: Path) -> None:
    study = replace(load_study(copy), responses=[])
    for metric in {key[3] for key in study.results}:
        study_content(replace(study, results={k: v for k, v in study.results.items() if k[3] != metric}))
    keep(copy / "results.csv", lambda line: line["metric"] == "response_tokens")
    text = text_of(copy)
    assert "Neither a reward nor an accuracy was measured together with a KL or a diversity." in text
    assert "No diversity was measured." in text


def test_a_folder_with_nothing_but_about_and_results_is_reported(copy: Path) -> None:
    for name in ("claims.json", "responses.csv", "curves.csv", "prompts.csv", "study.yaml"):
        (copy / name).unlink()
    text = text_of(copy)
    for words in ("No claim was judged.", "claims.json is missing: no claim is judged.",
                  "There are no responses to read.", "there are no training curves"):  # fmt: skip
        assert words in text, words
    write(copy / "about.json", {"schema": 1})
    (copy / "results.csv").write_text("task,arm,strength,seed,metric,value,low,high\n")
    assert "compared on 0 tasks" in text_of(copy)


def test_one_seed_broken_lines_and_waiting_cells_are_said(copy: Path) -> None:
    about = read(copy / "about.json")
    write(copy / "about.json", about | {"seeds": [1], "cells": {"done": 66, "failed": 0, "waiting": 4}, "failures": []})
    with (copy / "results.csv").open("a") as file:
        file.write("keywords,dpo\nkeywords,dpo,0.1,1,reward_mean,nan,,\n")
    (copy / "claims.json").write_text("{")
    text = text_of(copy)
    for words in ("With one seed, intervals tell how the prompts vary", "4 cells have not run yet",
                  "results.csv: 1 line has the wrong number of fields.", "claims.json is not valid JSON"):  # fmt: skip
        assert words in text, words
    assert "failed" not in text.split("Frontiers What")[0]


def test_unknown_methods_and_tasks_are_shown_too(copy: Path) -> None:
    with (copy / "results.csv").open("a") as file:
        for metric, value in (("reward_mean", 0.5), ("reverse_kl", 2)):
            file.write(f"new <task>,grpo,0.1,1,{metric},{value},,\n")
    html = write_study_report(copy).read_text(encoding="utf-8")
    assert "new &lt;task&gt;" in html
    assert 'data-method="grpo"' in html


def test_what_is_no_study_is_refused(tmp_path: Path, folder: Path) -> None:
    assert is_study(folder) and not is_study(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no study's folder: it has no about\.json; `tdpo compare` writes one"):
        write_study_report(tmp_path)
    (tmp_path / "about.json").write_text("[]")
    (tmp_path / "results.csv").write_text("")
    with pytest.raises(ValueError, match=r"about\.json is no JSON object"):
        write_study_report(tmp_path)
    with pytest.raises(IsADirectoryError, match="give the report a file name"):
        write_study_report(folder, tmp_path)


# ---- the file ------------------------------------------------------------------------------------------------


def test_methods_are_told_apart_by_every_colour_vision_and_by_their_markers() -> None:
    assert list(COLORS) == list(SYMBOLS) == list(methods.ARMS)
    assert list(ARMS) == [name for name in methods.ARMS if name in ARMS], "the order of the synthetic study"
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    factorial = ("online_dpo_forward", "online_dpo_reverse", "ppo_forward", "ppo_reverse_exact", "ppo_reverse", "tdpo2")
    assert len({COLORS[name] for name in factorial}) == len(factorial)
    for vision in VISIONS.values():
        seen = [lab(color, vision) for color in dict.fromkeys(COLORS.values())]  # arms that learn alike share one
        assert min(math.dist(one, other) for one, other in combinations(seen, 2)) > 16
    for color in COLORS.values():
        assert min(contrast(color, page) for page in ("#fcfcfa", "#ffffff", "#15181b")) >= 3


def test_every_marker_of_the_figures_has_a_shape_of_its_own_in_text() -> None:
    text = '{% from "macros.jinja" import swatch with context %}{{ swatch(name) }}'
    macro = template_environment().from_string(text)
    names = sorted({*SYMBOLS.values(), *drawing.SYMBOLS, "x"})
    drawn = {macro.render(name=name, marker=str, color=lambda _: "#123456") for name in names}
    assert len(drawn) == len(names)


def test_the_same_folder_gives_the_same_bytes(folder: Path, html: str, tmp_path: Path) -> None:
    out = write_study_report(folder, tmp_path / "new" / "page.html")
    assert out.read_text(encoding="utf-8") == html
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_the_report_of_a_study_never_imports_torch(folder: Path, tmp_path: Path) -> None:
    script = f"""
import sys, types
from pathlib import Path
package = types.ModuleType("tdpo")
package.__path__ = [{str(PACKAGE)!r}]
package.__version__ = "0"  # the page names it as its writer
sys.modules["tdpo"] = package
from tdpo.report import write_study_report
light = {{"plotly", "jinja2", "yaml", "csv"}} & set(sys.modules)
write_study_report(Path({str(folder)!r}), Path({str(tmp_path / "o.html")!r}))
heavy = {{"torch", "transformers", "numpy", "pandas"}} & set(sys.modules)
print(sorted(light), sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_the_command_writes_the_report_into_the_studys_folder(copy: Path, tmp_path: Path) -> None:
    from tdpo.cli.app import app

    done = CliRunner().invoke(app, ["report", str(copy)])
    assert (done.exit_code, (copy / "report.html").is_file()) == (0, True), done.output
    assert CliRunner().invoke(app, ["report", str(copy), "--out", str(tmp_path / "x.html")]).exit_code == 0
    assert (tmp_path / "x.html").is_file()
    refused = CliRunner().invoke(app, ["report", str(tmp_path), str(copy)])
    assert refused.exit_code != 0
    assert "give it alone" in " ".join(refused.output.replace("│", " ").split())
