"""A study as users run it: what it leaves, that it goes on after anything, and what it says of what failed."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.several_processes import clean_processes
from helpers.study_cases import read, start, start_from_nothing, tables, write_study
from helpers.warm_processes import WarmProcess
from tdpo.cli.app import app
from tdpo.comparison.cells import StudyFiles, cells_of, evaluation_recipe, training_recipe
from tdpo.comparison.prompt_table import read_prompt_table
from tdpo.comparison.running import CELL_FILE, DONE, PRELOADED, Failure, Outcome, Report, run_cells
from tdpo.comparison.study import LOCK_FILE, _changed, _refuse_foreign_folder, check
from tdpo.comparison.work import do_cell
from tdpo.config import OnlineRecipe, PPORecipe, Recipe, RecipeError, Study, dump_study, load_recipe, load_study
from tdpo.methods import ARMS
from tdpo.recipe_data.prompts import read_recipe_prompts
from tdpo.records.json_files import read_json, write_json
from tdpo.records.study_tables import CellKey, read_curves, read_prompt_rows, read_responses, read_results
from tdpo.runs import RunError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study that nothing disturbed, and what the command printed."""
    path = write_study(tmp_path_factory.mktemp("whole"))
    process = start(path)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return path, said


def test_a_study_leaves_tables_claims_and_a_report(whole: tuple[Path, str]) -> None:
    path, said = whole
    folder = path.parent / "study"
    study = read(path)
    cells = cells_of(study)
    # The reference of both tasks; six runs with a reward, three without; one baseline needs a reward, the other none.
    assert len(cells) == 2 + 6 + 3 + 1 + 2
    table = read_prompt_table(folder / "prompts.csv")
    assert set(table.cells) == set(cells)
    results = {(r.task, r.arm, r.strength, r.seed, r.metric): r for r in read_results(folder / "results.csv")}
    for arm, strength in (("reference", ""), ("tdpo2", "0.1"), ("ppo_forward", "0.5"), ("best_of", "2")):
        row = results["letters", arm, strength, 0, "reward_mean"]
        assert row.value is not None and row.low is None and row.high is None, "three prompts cannot give an interval"
    assert results["letters", "reference", "", 0, "forward_kl"].value == 0.0
    assert results["letters", "tdpo2", "0.1", 0, "forward_kl"].value > 0.0  # type: ignore[operator]
    assert 0 <= results["letters", "tdpo2", "0.1", 0, "mode_coverage"].value <= 1  # type: ignore[operator]
    assert results["letters", "sft", "0.001", 0, "scored_completions"].value == 16
    assert results["letters", "ppo_reverse", "0.1", 0, "scored_completions"].value == 16
    assert results["letters", "online_dpo_reverse", "0.5", 0, "scored_completions"].value == 16
    assert results["letters", "online_dpo_reverse", "0.5", 0, "updates"].value == 4
    assert results["rows", "tdpo2", "0.5", 0, "accuracy"].value is not None
    assert ("rows", "tdpo2", "0.5", 0, "reward_mean") not in results
    assert len(read_responses(folder / "responses.csv")) == len(
        [c for c in cells if c.task == "letters"]
    ) * 9 + 5 * 3 * len(table.prompts["rows"])
    curves = read_curves(folder / "curves.csv")
    for arm in ("ppo_reverse", "online_dpo_reverse"):
        drawn = [row for row in curves if row.cell.arm == arm and row.metric == "reward_mean"]
        assert [row.completions for row in drawn] == [8, 16], arm
    claims = read_json(folder / "claims.json")["claims"]
    assert [claim["verdict"] for claim in claims] == ["undecided"] * 4 or len(claims) == 4
    about = read_json(folder / "about.json")
    assert about["cells"] == {"done": 14, "failed": 0, "waiting": 0} and about["failures"] == []
    assert about["tasks"][1]["left_out"] == ["Online DPO, reverse KL", "PPO (reverse KL)", "PPO (forward KL)"]
    strengths = {arm["name"]: arm["strength"] for arm in about["arms"]}
    assert strengths["tdpo2"] == "β" and strengths["best_of"] == "n"
    assert strengths["ppo_forward"] == "target of the reverse KL, nats", "the study's direction, not the arm's"
    assert (folder / "report.html").stat().st_size > 100_000
    assert "Report: " in said and "14 runs finished" in said


def test_all_runs_of_a_seed_train_on_the_same_prompts_and_say_what_a_strength_is(whole: tuple[Path, str]) -> None:
    path, _ = whole
    folder, letters = path.parent / "study", path.parent / "study/cells/letters"
    pairs = [json.loads(line)["prompt"] for line in (folder / "pairs/letters-s0-train.jsonl").read_text().splitlines()]
    for run in ("ppo_forward-target0.5-s0", "ppo_reverse-0.1-s0", "online_dpo_reverse-target0.5-s0"):
        recipe = load_recipe(letters / run / "run")
        assert not isinstance(recipe, Recipe)
        trained_on, _, _ = read_recipe_prompts(recipe)
        assert len(trained_on) == 4 and set(pairs) <= {prompt.prompt for prompt in trained_on}
    rows = {(row.cell.arm, row.cell.task): row for row in read_prompt_rows(folder / "prompts.csv")}
    kinds = {arm: rows[arm, "letters"].strength_kind for arm, task in rows if task == "letters"}
    assert kinds == {
        "reference": "", "best_of": "n", "temperature": "temperature", "sft": "strength", "tdpo2": "strength",
        "online_dpo_reverse": "target", "ppo_reverse": "strength", "ppo_forward": "target",
    }  # fmt: skip
    assert all(row.cluster == row.prompt_id for row in rows.values()), "prompts without themes stand for themselves"


def test_baselines_are_judged_as_arms_are(whole: tuple[Path, str]) -> None:
    """The best of two has no KL; the reference at another temperature has both, exactly."""
    folder = whole[0].parent / "study"
    table = read_prompt_table(folder / "prompts.csv")
    reference, best = (table.cells[CellKey("letters", *arm, 0)] for arm in (("reference", ""), ("best_of", "2")))
    assert (best["reward_mean"] >= reference["reward_mean"]).all() and "reverse_kl" not in best
    for task in ("letters", "rows"):
        cooler = table.cells[CellKey(task, "temperature", "0.5", 0)]
        assert (cooler["reverse_kl"] > 0).all() and (cooler["forward_kl"] > 0).all()
        entropy = table.cells[CellKey(task, "reference", "", 0)]["policy_entropy"]
        assert cooler["policy_entropy"].mean() < entropy.mean()


def test_the_tables_of_a_study_fit_80_columns() -> None:
    """Of the one that was run, with every arm but one, whose label is the longest."""
    from rich.console import Console

    from tdpo.cli._study_tables import SHOWN, _table_of, results_tables
    from tdpo.records.study_tables import ResultRow

    longest = [ResultRow("t", "ppo_reverse_exact", "0.0001", 0, metric, -0.01234) for metric in SHOWN]
    console = Console(width=80)
    with console.capture() as captured:
        for table in [
            *results_tables(ROOT / "docs/study"),
            _table_of("t", [r for r in longest if r.metric != "accuracy"]),
        ]:
            console.print(table)
    shown = captured.get()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    assert shown.count("PPO (reverse KL)") == 9 and "-0.0123" in shown


def test_the_same_command_has_nothing_left_to_do(whole: tuple[Path, str]) -> None:
    path, _ = whole
    before = tables(path.parent / "study")
    process = start(path)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and "14 runs finished" in said
    assert tables(path.parent / "study") == before


def test_killed_again_and_again_the_tables_are_those_of_an_undisturbed_study(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    """SIGKILL to the whole study at random moments; its runs end with it and are taken up by the same command."""
    whole_path, _ = whole
    expected = tables(whole_path.parent / "study")
    # The same folder for the inputs: prompts are named by their file.
    draw = random.Random(5)
    path = whole_path
    folder = tmp_path / "killed"
    kills = 0
    while kills < 4:
        process = start(path, f"study_dir={folder}")
        finished = 0 if not folder.exists() else len(list(folder.glob(f"cells/*/*/{CELL_FILE}")))
        # Some kills fall early in a run, some in the middle; each waits until something new has begun or ended.
        deadline = time.monotonic() + 120
        while len(list(folder.glob("cells/*/*/cell.log"))) <= finished and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            process.wait(draw.uniform(0.3, 3.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            time.sleep(0.5)  # runs notice within a moment that the study is gone
        else:  # a fast machine may be done before the fourth kill
            break
    assert kills >= 2, "it ended before it could be killed twice"
    process = start(path, f"study_dir={folder}")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert tables(folder) == expected


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(whole: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = whole
    folder = tmp_path / "stopped"
    overrides = (f"study_dir={folder}", f"tasks={json.dumps(_only_letters(path))}")
    for until, kept in ((f"{LOCK_FILE}", 0), (f"cells/*/*/{CELL_FILE}", 1)):  # as libraries load, and later
        process = start_from_nothing(path, *overrides)
        deadline = time.monotonic() + 120
        while not list(folder.glob(until)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 130, said
        assert "The same command goes on: tdpo compare" in said and "Traceback" not in said
        told = re.search(r"stopped: (\d+) runs are finished and kept, (\d+) are left", said)
        assert told is not None and int(told[1]) >= kept and int(told[1]) + int(told[2]) == 9, said
    assert (folder / "results.csv").exists()


def test_a_reward_that_raises_costs_only_its_cells(tmp_path: Path) -> None:
    """First held-out prompts spring the trap, then those to train on, which PPO alone asks for once pairs are made."""
    path = write_study(tmp_path, online=None, target_direction=None, best_of=None, temperatures=None)
    arms = [{"name": "tdpo2", "strengths": [0.1]}, {"name": "ppo_reverse", "strengths": [0.1]}]
    overrides = (f"tasks={json.dumps(_only_letters(path))}", f"arms={json.dumps(arms)}")
    (tmp_path / "trap").write_text("held_out")
    process = start(path, *overrides)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "failed: letters/reference-s0 (samples of the base model)" in said
    assert "the reward fell into a trap" in said and "prompt 'held_out.jsonl:1'" in said
    assert "failed: letters/tdpo2-0.1-s0 (waiting): its reference cell failed" in said
    assert "To go on: tdpo compare" in said
    (tmp_path / "trap").write_text("train")
    again, _ = start(path, *overrides).communicate(timeout=300)
    assert "failed: letters/ppo_reverse-0.1-s0 (training): RewardError" in again and "2 runs finished" in again
    about = read_json(tmp_path / "study/about.json")
    assert about["cells"] == {"done": 2, "failed": 1, "waiting": 0}
    assert [failure["cell"] for failure in about["failures"]] == ["letters/ppo_reverse-0.1-s0"]
    assert "letters/ppo_reverse-0.1-s0" in (tmp_path / "study/report.html").read_text()
    functions = tmp_path / "mine.py"
    functions.write_text(functions.read_text().replace("if trap.exists()", "if False"))  # mended, as one does
    process = start(path, *overrides)
    last, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "3 runs finished" in last
    told = f"{functions} has changed since 2 runs finished with it (letters/reference-s0 and others)"
    assert told in last and "note: " not in again, "which a mended function did to the runs before"
    [changed] = read_json(tmp_path / "study/about.json")["changed_inputs"]
    assert changed["cells"] == ["letters/reference-s0", "letters/tdpo2-0.1-s0"]
    assert told in (tmp_path / "study/report.html").read_text()


def _only_letters(path: Path) -> list[dict[str, Any]]:
    study = read(path)
    environment = study.tasks[0].environment
    assert environment is not None
    return [{"name": "letters", "environment": environment.model_dump(exclude_unset=True)}]


# The supervisor, with jobs that end in every way


class Silent:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def started(self, cell: CellKey) -> None:
        self.events.append(("started", cell.arm))

    def moved(self, cell: CellKey, stage: str, done: int, total: int, note: str) -> None: ...

    def finished(self, cell: CellKey, seconds: float) -> None:
        self.events.append(("finished", cell.arm))

    def failed(self, failure: Failure) -> None:
        self.events.append(("failed", failure.cell.arm))

    def tick(self) -> None: ...


def job(study: Study, files: StudyFiles, cell: CellKey, report: Report) -> None:
    report("training", 1, 2, "")
    if cell.arm == "sft":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
    if cell.arm == "ppo_reverse":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.arm == "ppo_forward":
        raise ModuleNotFoundError("No module named 'nothing'")
    write_json(files.cell(cell) / CELL_FILE, {"state": DONE, "seconds": {}})


LOADED_AHEAD = """
import torch
def asked(*_):
    raise AssertionError("CUDA was asked")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = torch._C._cuda_getDeviceCount = asked
import {module}
"""


def test_the_work_of_cells_is_loaded_ahead_and_asks_cuda_nothing(tmp_path: Path) -> None:
    """Or a process that is forked of the one that loaded it could not use a GPU."""
    module = do_cell.__module__
    assert module in PRELOADED
    script = tmp_path / "load.py"
    script.write_text(LOADED_AHEAD.format(module=module))
    process = WarmProcess(script)
    assert process.wait() == 0, process.errors


@pytest.fixture(scope="module")
def _processes() -> Iterator[None]:
    """Jobs are forked from a process that has imported this file once; otherwise each would import it anew."""
    with clean_processes(__name__):
        yield


def outcome(tmp_path: Path, *arms: str) -> tuple[Outcome, Silent]:
    path = write_study(tmp_path)
    study = read(path, "tasks=" + json.dumps(_only_letters(path)), "workers=1")
    cells = [cell for cell in cells_of(study) if cell.arm in ("reference", *arms)]
    observer = Silent()
    return run_cells(study, StudyFiles.of(study), cells, job, 1, observer), observer


@pytest.mark.usefixtures("_processes")
def test_a_killed_process_and_a_missing_package_are_failures_like_others(tmp_path: Path) -> None:
    found, observer = outcome(tmp_path, "ppo_reverse", "ppo_forward", "tdpo2")
    assert [cell.arm for cell in found.done] == ["reference", "tdpo2", "tdpo2"]
    said = {failure.cell.arm: failure for failure in found.failures}
    assert "ended by SIGKILL: the system may have run out of memory" in said["ppo_reverse"].error
    assert "workers=1" in said["ppo_reverse"].next
    assert said["ppo_forward"].error == "ModuleNotFoundError: No module named 'nothing'"
    assert said["ppo_forward"].next.startswith("install the package") and said["ppo_forward"].stage == "training"
    assert "ModuleNotFoundError" in said["ppo_forward"].log.read_text()
    assert read_json(tmp_path / "study/cells/letters/ppo_forward-target0.5-s0" / CELL_FILE)["state"] == "failed"
    assert observer.events.count(("failed", "ppo_forward")) == 1 and found.waiting == []


@pytest.mark.usefixtures("_processes")
def test_nothing_is_begun_on_a_full_disk(tmp_path: Path) -> None:
    found, _ = outcome(tmp_path, "sft", "tdpo2")
    assert found.disk_full and [cell.arm for cell in found.done] == ["reference"]
    assert [failure.cell.arm for failure in found.failures] == ["sft"]
    assert "No space left on device" in found.failures[0].error and "free space" in found.failures[0].next
    assert [cell.arm for cell in found.waiting] == ["tdpo2", "tdpo2"]


@pytest.mark.parametrize("writes", ["tdpo.comparison.study.write_study", "tdpo.report.write_study_report"])
def test_a_disk_too_full_for_tables_or_report_is_told_with_the_command(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    from typer.testing import CliRunner

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writes, full)
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["compare", str(whole[0])])
    assert found.exit_code == 1
    assert "tables and report could not be written: [Errno 28] No space left on device" in found.stderr
    assert f"To go on: tdpo compare {whole[0]}" in found.stderr


# Recipes of cells, and what is refused before anything runs


def test_the_recipe_of_a_cell_is_the_study_with_its_arm_and_strength(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    study, files = read(path, "seeds=[3]"), StudyFiles(tmp_path / "study")
    recipes = {cell: training_recipe(study, files, cell) for cell in cells_of(study) if ARMS[cell.arm].is_trained}
    dpo = recipes[CellKey("letters", "tdpo2", "0.5", 3)]
    assert isinstance(dpo, Recipe) and (dpo.loss.name, dpo.loss.beta, dpo.loss.alpha, dpo.seed) == (
        "tdpo2",
        0.5,
        0.5,
        3,
    )
    assert dpo.data.eval is None and dpo.training.num_threads == 1
    sft = recipes[CellKey("rows", "sft", "0.001", 3)]
    assert isinstance(sft, Recipe) and sft.training.learning_rate == 1e-3 and sft.loss.beta is None
    ppo = recipes[CellKey("letters", "ppo_forward", "0.5", 3)]
    assert isinstance(ppo, PPORecipe) and ppo.ppo.iterations == 2 and ppo.rollouts.completions == 8
    assert (ppo.kl.direction, ppo.kl.form, ppo.kl.place, ppo.kl.controller) == ("forward", "exact", "loss", "dual")
    assert (ppo.kl.target, ppo.kl.target_direction, ppo.rollouts.prompts) == (0.5, "reverse", 4)
    fixed = recipes[CellKey("letters", "ppo_reverse", "0.1", 3)]
    assert isinstance(fixed, PPORecipe) and (fixed.kl.controller, fixed.kl.coefficient) == ("fixed", 0.1)
    online = recipes[CellKey("letters", "online_dpo_reverse", "0.5", 3)]
    assert isinstance(online, OnlineRecipe) and online.updates == 4 and online.loss.name == "dpo"
    term = online.loss.kl
    assert term is not None and (term.direction, term.target, term.target_direction) == ("reverse", 0.5, "reverse")
    assert ppo.evaluation.seed == study.evaluation.seed + 3
    judged = evaluation_recipe(study, files, CellKey("letters", "tdpo2", "0.5", 3))
    assert isinstance(judged, Recipe) and judged.data.eval is None
    judged = evaluation_recipe(study, files, CellKey("rows", "tdpo2", "0.5", 3))
    assert isinstance(judged, Recipe) and judged.data.eval == str(files.pairs("rows", 3, "held-out"))


def test_the_resolved_study_loads_to_itself(tmp_path: Path) -> None:
    study = read(write_study(tmp_path))
    (tmp_path / "again").mkdir()
    (tmp_path / "again/study.yaml").write_text(dump_study(study))
    assert load_study(tmp_path / "again") == study


def test_a_study_read_back_from_its_folder_makes_the_same_recipes(tmp_path: Path) -> None:
    """`tdpo compare FOLDER` goes on with runs that `tdpo compare FILE` began: a run refuses another recipe."""
    study, files = read(write_study(tmp_path)), StudyFiles(tmp_path / "study")
    files.folder.mkdir()
    (files.folder / "study.yaml").write_text(dump_study(study))
    again = load_study(files.folder)
    for cell in cells_of(study):
        if ARMS[cell.arm].is_trained:
            assert training_recipe(again, files, cell) == training_recipe(study, files, cell), cell


def test_sections_that_no_run_reads_are_refused_and_not_written(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    values = yaml.safe_load(path.read_text())
    pairs_only = {**values, "arms": values["arms"][:2], "target_direction": None}
    with pytest.raises(RecipeError, match=r"rollouts: has no effect: no arm is one of PPO(.|\n)*ppo: has no effect"):
        load_study(pairs_only)
    study = load_study({key: value for key, value in pairs_only.items() if key not in ("rollouts", "online", "ppo")})
    dumped = yaml.safe_load(dump_study(study))
    assert "rollouts" not in dumped and load_study(dumped) == study
    with pytest.raises(RecipeError, match="training: has no effect: all arms are PPO"):
        load_study({**values, "arms": values["arms"][3:]})
    with pytest.raises(RecipeError, match="training: has no effect: all arms are on own responses"):
        load_study({**values, "arms": values["arms"][2:]})
    with pytest.raises(RecipeError, match="target_direction: has no effect: no arm has targets"):
        load_study({**values, "arms": [values["arms"][3]]})
    with pytest.raises(RecipeError, match=r"arms\[2\].name: can learn no task"):
        load_study({key: value for key, value in values.items() if key != "budget"} | {"tasks": values["tasks"][1:]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget=18", "sampling.samples_per_prompt: 4 does not divide budget 18"),
        ("rollouts.completions=6", "rollouts.completions: 6 does not divide budget 16"),
        ("ppo.iterations=3", "ppo.iterations: follows from budget / rollouts.completions"),
        ("training.num_threads=2", "training.num_threads: is the study's own: set threads instead"),
        ("evaluation.max_prompts=null", "evaluation.max_prompts: is null, but task rows has rows"),
        ("evaluation.samples_per_prompt=1", "must be at least 2: diversity compares responses"),
        ("arms=[{name: dpo, strengths: [0.1, 0.10]}]", "arms[0].strengths: names 0.1 twice"),
        ("arms=[{name: dpo, targets: [3]}]", "strengths: is empty: give dpo at least one"),
        ("arms=[{name: dpo, strengths: [1], targets: [3]}]", "arms[0].targets: cannot be met: nothing holds dpo"),
        ("arms=[{name: sft}]", "arms[0].strengths: is empty: give sft at least one"),
        ("arms=[{name: tdpo2, strengths: [1], targets: [3]}]", "arms[0].targets: is one of two: an arm has either"),
        ("arms=[{name: tdpo2}]", "arms[0].targets: is one of two: an arm has either strengths or targets"),
        ("arms=[{name: tdpo2, targets: [3, 0]}]", "a number > 0"),
        ("target_direction=js", "target_direction: expected one of reverse, forward"),
        ("best_of=[1]", "best_of"),
        ("best_of=[2, 2]", "best_of: names 2 twice"),
        ("temperatures=[0.7, 0]", "a number > 0"),
        (
            "training_prompts=8",
            "training_prompts: 8 prompts with 4 responses to each (sampling.samples_per_prompt) are",
        ),
        ("rollouts.prompts=4", "rollouts.prompts: is the study's own: set training_prompts instead"),
        ("online.iterations=3", "online.iterations: follows from budget / rollouts.completions"),
        ("arms=[{name: dpo, strengths: [0.1, -2]}]", "a number > 0, got [0.1, -2] (entry 2: -2)"),
        ("seeds=[1, x]", "got [1, 'x'] (entry 2: the text 'x')"),
        ("arms=[{name: grpo, strengths: [0.1]}]", "arms[0].name: expected one of sft, dpo"),
        ("seeds=[1, 1]", "seeds: names a seed twice"),
        ("tasks=[{name: x}]", "tasks[0].data: is one of two"),
        ("run_dir=x", "is the recipe of one run, not a study"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = write_study(tmp_path)
    overrides = [override]
    if override.startswith("evaluation.samples"):
        overrides.append("evaluation.kl_samples_per_prompt=null")
    with pytest.raises(RecipeError) as raised:
        read(path, *overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"name": "tdpo2", "strengths": [0.1], "set": {"loss.gamma": 1}}, "cell letters/tdpo2-0.1-s0: loss.gamma"),
        ({"name": "dpo", "strengths": [0.1], "set": {"loss.alpha": 1}}, "has no effect with loss.name dpo"),
        ({"name": "dpo", "strengths": [0.1], "set": {"loss.beta": 1}}, "makes the arm what it is"),
        (
            {"name": "tdpo2", "targets": [3], "set": {"loss.kl.target": 1}},
            "makes the arm what it is; set arms[].targets",
        ),
        (
            {"name": "dpo_forward", "targets": [3], "set": {"loss.kl.target_direction": "forward"}},
            "is the study's own: set target_direction",
        ),
    ],
)
def test_an_arm_whose_keys_make_no_recipe_is_refused(tmp_path: Path, arm: dict[str, Any], message: str) -> None:
    other = {"name": "ppo_forward", "targets": [0.1]}
    study = read(write_study(tmp_path, online=None), f"arms={json.dumps([arm, other])}")
    with pytest.raises(RecipeError) as raised:
        check(study, StudyFiles(Path(study.study_dir)), cells_of(study))
    assert message in str(raised.value)


def test_a_missing_package_and_too_few_prompts_are_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path)
    files = StudyFiles(tmp_path / "study")
    study = read(path, "budget=32")
    with pytest.raises(ValueError, match="needs 8 training prompts, there are 4"):
        check(study, files, cells_of(study))
    study = read(path, "embeddings=minilm")
    monkeypatch.setattr("tdpo.embeddings.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        check(study, files, cells_of(study))


def test_a_study_may_grow_and_nothing_else(tmp_path: Path) -> None:
    """Asked of one whose folder holds what `before` names; runs that are there must be runs of the new study."""
    values = yaml.safe_load(write_study(tmp_path).read_text())
    tasks, arms = values["tasks"], values["arms"]
    others = ("rollouts", "online", "ppo", "target_direction")
    pairs_only = {key: value for key, value in values.items() if key not in others}
    before = load_study({**pairs_only, "tasks": tasks[:1], "arms": arms[:2], "seeds": [3]})

    def changed(**keys: Any) -> list[str]:
        return _changed(before, load_study({**values, "seeds": [3], **keys}))

    more = [{**arms[0], "strengths": [*arms[0]["strengths"], 9.0]}, *arms[1:]]
    assert changed() == []  # another task, and PPO with the sections it brings
    assert changed(tasks=tasks[::-1], arms=more[::-1], seeds=[3, 1]) == []
    renamed = [{**tasks[0], "name": "others"}, tasks[1]]
    assert [line.split(":")[0] for line in changed(tasks=renamed)] == ["  tasks"]
    assert changed(best_of=[2, 4], temperatures=[2.0, 0.5]) == []
    assert [line.split(":")[0] for line in changed(best_of=[4])] == ["  best_of"]
    for lost in (
        arms[1:],
        [{**arms[0], "strengths": [9.0]}, *arms[1:]],
        [{**arms[0], "set": {"seed": 1}}, *arms[1:]],
        [arms[0], {"name": "tdpo2", "targets": arms[1]["strengths"]}, *arms[2:]],
    ):
        assert [line.split(":")[0] for line in changed(arms=lost)] == ["  arms"]
    assert [line.split(":")[0] for line in changed(seeds=[1, 3])] == ["  seeds"]
    assert [line.split(":")[0] for line in changed(budget=32)] == ["  budget"]


def test_runs_on_the_prompts_of_an_older_rule_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    study = read(write_study(tmp_path))
    files = StudyFiles.of(study)
    files.folder.mkdir()
    older = yaml.safe_load(dump_study(study))
    (files.folder / "study.yaml").write_text(yaml.safe_dump(older))
    _refuse_foreign_folder(study, files)
    del older["training_prompts"]  # which no version wrote that took the first prompts
    (files.folder / "study.yaml").write_text(yaml.safe_dump(older))
    with pytest.raises(RunError, match="was begun by an earlier version"):
        _refuse_foreign_folder(study, files)
    for cell in cells_of(study):
        files.cell(cell).mkdir(parents=True)
        write_json(files.cell(cell) / CELL_FILE, {"state": DONE})
    _refuse_foreign_folder(study, files)  # nothing is left to run: its numbers may be judged anew


def test_another_study_in_the_folder_is_refused(whole: tuple[Path, str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path, _ = whole
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["compare", str(path), "budget=8"])
    assert found.exit_code == 2
    assert "holds another study" in found.stderr and "budget: the study has 16, now 8" in found.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    found = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["compare", str(path), f"study_dir={tmp_path / 'mine'}"])
    assert found.exit_code == 2 and "holds files that are no study (notes.txt)" in found.stderr
