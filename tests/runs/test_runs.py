"""Run directories: begun, held, killed, resumed, refused; at every moment readable."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from tdpo.config import PPORecipe, Recipe, RecipeError, load_recipe
from tdpo.records.files import write_text
from tdpo.records.folders import remove
from tdpo.records.json_files import append_jsonl, read_json, write_json
from tdpo.records.names import METRICS_FILE
from tdpo.runs import RunDirectory, RunError, check_resumable, checkpoint_step, describe_machine, mark_complete
from tdpo.runs.contents import FILES


def recipe_for(path: Path, *overrides: str) -> Recipe:
    loaded = load_recipe({"run_dir": str(path), "data": {"train": "pairs.jsonl"}}, overrides)
    assert isinstance(loaded, Recipe)
    return loaded


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create(recipe_for(run.path))
    return run


def ppo_recipe_for(path: Path, *overrides: str) -> PPORecipe:
    loaded = load_recipe({"run_dir": str(path), "ppo": {}, "environment": {"name": "sentiment"}}, overrides)
    assert isinstance(loaded, PPORecipe)
    return loaded


def checkpoint(run: RunDirectory, step: int, *, complete: bool = True) -> Path:
    folder = run.path / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "weights").write_text("…", encoding="utf-8")
    if complete:
        mark_complete(folder)
    return folder


# Beginning


def test_a_new_run_holds_recipe_environment_and_status(run: RunDirectory) -> None:
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "environment.json", "recipe.yaml", "status.json"]
    assert run.recipe() == recipe_for(run.path)
    status = run.status()
    assert (status["state"], status["step"], status["error"]) == ("running", 0, None)
    environment = run.read_json("environment.json")
    assert environment["versions"]["torch"] and environment["hardware"]["cores"] >= 1 and environment["seed"] == 0


def test_the_recipe_is_written_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> dict[str, Any]:
        assert (tmp_path / "run" / "recipe.yaml").exists()
        raise RuntimeError("stop here")

    monkeypatch.setattr("tdpo.runs.directory.describe_machine", fail)
    with pytest.raises(RuntimeError, match="stop here"):
        RunDirectory(tmp_path / "run").create(recipe_for(tmp_path / "run"))


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/.venv/bin/tdpo", "train", "my recipe.yaml"], "tdpo train 'my recipe.yaml'"),
        (["/x/site-packages/tdpo/cli/main.py", "train"], "tdpo train"),
        (["/x/site-packages/tdpo/__main__.py", "train"], "tdpo train"),
    ],
)
def test_the_command_can_be_given_again(argv: list[str], command: str) -> None:
    described = describe_machine(0, argv)
    assert described["command"] == command and described["argv"][0] == "tdpo"


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    with (
        pytest.raises(RunError, match=r"holds files that are no run of tdpo \(thesis.tex\)"),
        RunDirectory.training(recipe_for(tmp_path), overwrite=True),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_recipe_of_the_users_own_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="holds files that are no run of tdpo"):
        RunDirectory(tmp_path).create(recipe_for(tmp_path), overwrite=True)
    with pytest.raises(RunError, match=r"has no recipe\.yaml and status\.json"):
        RunDirectory.open(tmp_path)
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == "mine"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory(tmp_path / "file").create(recipe_for(tmp_path / "file"))


def test_a_run_that_got_somewhere_is_refused_with_the_ways_on(run: RunDirectory) -> None:
    run.set_status("interrupted", step=7, max_steps=9)
    said = r"was interrupted at update 7 of 9 on \S+ at \S+ UTC: --resume continues it, .*--overwrite replaces it"
    with pytest.raises(RunError, match=said):
        run.create(recipe_for(run.path))
    run.set_status("finished")
    with pytest.raises(RunError) as caught:
        run.create(recipe_for(run.path))
    assert "--resume" not in str(caught.value) and "finished at update 7 of 9" in str(caught.value)


def test_a_run_that_failed_before_its_first_update_is_replaced(run: RunDirectory) -> None:
    run.set_status("failed", error="BadPreferences: 3 rows")
    run.create(recipe_for(run.path, "seed=5"))
    assert run.recipe().seed == 5 and run.status()["error"] is None


def test_overwrite_moves_what_a_run_wrote_aside_and_nothing_else(run: RunDirectory) -> None:
    checkpoint(run, 3)
    append_jsonl(run.path / METRICS_FILE, {"step": 1})
    for name in ("pairs.jsonl", "checkpoint-notes"):
        (run.path / name).write_text("mine", encoding="utf-8")
    (run.path / "model").mkdir()
    run.create(recipe_for(run.path, "seed=2"), overwrite=True)
    names = {p.name for p in run.path.iterdir()}
    new = {".lock", "environment.json", "recipe.yaml", "status.json", "replaced-run"}
    assert names == {*new, "pairs.jsonl", "checkpoint-notes"}
    kept = {p.name for p in (run.path / "replaced-run").iterdir()}
    assert kept == {"environment.json", "recipe.yaml", "status.json", "checkpoint-3", "metrics.jsonl", "model"}
    run.let_go_of_replaced()
    assert {p.name for p in run.path.iterdir()} == names - {"replaced-run"}


def test_overwrite_removes_everything_that_tdpo_writes(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine", encoding="utf-8")
    for name in (*FILES, "metrics.tmp", ".metrics.jsonl.ab12_xyz", ".status.json.ab12cdef"):
        (run.path / name).write_text("", encoding="utf-8")
    (run.path / ".model-being-saved").symlink_to(tmp_path / "elsewhere")
    (run.path / "checkpoint-7").symlink_to(tmp_path / "elsewhere")
    (run.path / "data.json").unlink()
    (run.path / "data.json").symlink_to(tmp_path / "elsewhere" / "mine")
    for name in ("model/deep", "sampler_adapters/tdpo-1", "runs/host"):
        (run.path / name).mkdir(parents=True)
    (run.path / "runs" / "host" / "events.out.tfevents.1").write_text("", encoding="utf-8")
    mine = {".thesis.tex.ab12cdef", "checkpoint-last"}
    for name in mine:
        (run.path / name).write_text("mine", encoding="utf-8")
    run.create(recipe_for(run.path), overwrite=True)
    run.let_go_of_replaced()
    assert {p.name for p in run.path.iterdir()} == {".lock", "environment.json", "recipe.yaml", "status.json", *mine}
    assert (tmp_path / "elsewhere" / "mine").read_text(encoding="utf-8") == "mine"


def test_a_folder_of_runs_within_a_run_is_no_tensorboard(run: RunDirectory) -> None:
    (run.path / "runs" / "host").mkdir(parents=True)
    (run.path / "runs" / "host" / "events.out.tfevents.1").write_text("", encoding="utf-8")
    (run.path / "runs" / "notes.txt").write_text("mine", encoding="utf-8")
    run.create(recipe_for(run.path), overwrite=True)
    assert (run.path / "runs" / "notes.txt").exists()


@pytest.mark.parametrize("full", ["recipe.yaml", "environment.json", "status.json"])
def test_a_disk_that_fills_up_while_a_run_begins_leaves_a_folder_to_begin_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    write = os.fdopen

    def fails_for_one(handle: int, *args: Any, **kwargs: Any) -> Any:
        if f"/.{full}." in str(Path(f"/proc/self/fd/{handle}").readlink()):
            os.close(handle)
            raise OSError(28, "No space left on device")
        return write(handle, *args, **kwargs)

    recipe, path = recipe_for(tmp_path / "run"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", fails_for_one)
        told = rf"No space left on device \([\d,]+ bytes to write, [\d,]+ bytes free\).*{full}"
        with pytest.raises(OSError, match=told):
            RunDirectory(path).create(recipe)
    assert not RunDirectory(path).is_run() and RunDirectory(path).why_not_new() is None
    with RunDirectory.training(recipe) as run:
        assert run.is_run()
    assert sorted(p.name for p in path.iterdir()) == [".lock", "environment.json", "recipe.yaml", "status.json"]


def test_a_run_of_which_half_was_cleared_is_none(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.set_status("failed")

    def stopped(path: Path) -> None:
        if path.name == "environment.json":
            raise KeyboardInterrupt
        if path.name not in ("recipe.yaml", "status.json"):
            remove(path)

    with monkeypatch.context() as patch:
        patch.setattr("tdpo.runs.replacing.remove", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.create(recipe_for(run.path), overwrite=True)
    assert (run.path / "recipe.yaml").exists() and (run.path / "status.json").exists() and not run.is_run()
    run.create(recipe_for(run.path, "seed=3"))
    assert run.is_run() and run.recipe().seed == 3


@pytest.mark.parametrize("name", [".lock", ".run-being-begun"])
def test_a_planted_link_is_not_written_through(tmp_path: Path, name: str) -> None:
    mine, path = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine", encoding="utf-8")
    path.mkdir()
    (path / name).symlink_to(mine)
    with contextlib.suppress(RunError, OSError):
        RunDirectory(path).create(recipe_for(path))
    assert mine.read_text(encoding="utf-8") == "mine"
    (tmp_path / "lines.jsonl").symlink_to(mine)
    with pytest.raises(OSError, match=r"is a symbolic link, and nothing is written through one"):
        append_jsonl(tmp_path / "lines.jsonl", {})


def test_overwrite_removes_a_link_and_not_what_it_leads_to(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (run.path / "model").symlink_to(tmp_path / "elsewhere")
    run.create(recipe_for(run.path), overwrite=True)
    assert (tmp_path / "elsewhere").is_dir() and not (run.path / "model").exists()


def test_opening_what_is_no_run_says_where_runs_are(run: RunDirectory, tmp_path: Path) -> None:
    assert RunDirectory.open(run.path).recipe() == run.recipe()
    with pytest.raises(RunError, match=r"has no recipe.yaml and status.json; runs inside it: .*run"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="it does not exist"):
        RunDirectory.open(tmp_path / "none")


# While it trains


def test_the_status_follows_the_end(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path / "run", "training.max_steps=9")
    with pytest.raises(KeyboardInterrupt), RunDirectory.training(recipe) as run:
        assert run.status()["state"] == "running" and run.status()["max_steps"] == 9
        run.set_status("running", step=4)
        raise KeyboardInterrupt
    assert (run.status()["state"], run.status()["step"]) == ("interrupted", 4)
    with pytest.raises(ZeroDivisionError), RunDirectory.training(recipe, resume=True) as run:
        raise ZeroDivisionError("one by zero")
    assert run.status()["state"] == "failed" and run.status()["error"] == "ZeroDivisionError: one by zero"
    with RunDirectory.training(recipe, resume=True) as run:
        assert run.status()["error"] is None
    assert (run.status()["state"], run.status()["step"], run.status()["max_steps"]) == ("finished", 4, 9)


def test_a_run_that_says_it_is_running_is_dead_once_nobody_holds_it(run: RunDirectory) -> None:
    run.set_status("running", step=3)
    with run.locked():
        assert run.state() == RunDirectory(run.path).state() == "running"
    assert run.status()["state"] == "running" and run.state() == "killed"
    with pytest.raises(
        RunError, match=r"holds a run that was killed at update 3, last seen on .* UTC: --resume continues"
    ):
        run.create(recipe_for(run.path))
    with pytest.raises(RunError, match=r"no trained model yet: it was killed at update 3, .*tdpo train .* --resume"):
        _ = run.model_path
    (run.path / ".lock").unlink()
    assert run.state() == "running", "a copy without a lock says nothing"


def test_asking_whether_a_run_is_held_does_not_keep_others_out(run: RunDirectory) -> None:
    with (run.path / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        asker = threading.Timer(0.03, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        asker.start()
        with run.locked():
            pass
        asker.join()


def test_an_unknown_state_is_refused(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="unknown state 'done'; known: running"):
        run.set_status("done")  # type: ignore[arg-type]


HOLDER = """
import sys, time
from tdpo.config import load_recipe
from tdpo.runs import RunDirectory
with RunDirectory.training(load_recipe({"run_dir": sys.argv[1], "data": {"train": "p.jsonl"}})) as run:
    run.set_status("running", step=3)
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_kept_out_until_a_kill_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for arguments in ({"resume": True}, {"overwrite": True}, {}):
            with (
                pytest.raises(RunError, match=rf"in use by another process \(process {holder.pid} on host \S+ since"),
                RunDirectory.training(recipe_for(path), **arguments),
            ):
                pass
        with pytest.raises(RunError, match=rf"it is running at update 3 \(process {holder.pid} on .*wait for its end"):
            _ = RunDirectory.open(path).model_path
        assert "--resume" not in str(RunDirectory(path).why_not_new())
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert read_json(path / "status.json")["step"] == 3
    recipe = load_recipe({"run_dir": str(path), "data": {"train": "p.jsonl"}})
    with RunDirectory.training(recipe, resume=True) as run:
        assert run.resume_step() == 0


def test_only_the_first_process_of_a_launch_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with RunDirectory.training(recipe_for(tmp_path / "run")) as run:
        run.set_status("running", step=1)
        run.write_json("data.json", {})
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("the first process is making the run")
    with RunDirectory.training(recipe_for(tmp_path / "run")) as run:
        assert not run.writes


# Checkpoints and metrics


def test_the_newest_complete_checkpoint_is_found_by_number(run: RunDirectory) -> None:
    assert run.checkpoints().newest is None and run.resume_step() == 0
    for step in (9, 10, 100):
        checkpoint(run, step)
    cut_off = checkpoint(run, 200, complete=False)
    (run.path / "checkpoint-best").mkdir()
    (run.path / "checkpoint-300").write_text("a file", encoding="utf-8")
    found = run.checkpoints()
    assert [checkpoint_step(p) for p in found.complete] == [9, 10, 100]
    assert found.incomplete == [cut_off] and run.resume_step() == 100


def test_metrics_keep_every_number(run: RunDirectory) -> None:
    entries = [{"step": 1, "split": "train", "loss": 0.1 + 0.2}, {"step": 2, "loss": math.nan, "kl": math.inf}]
    for entry in entries:
        append_jsonl(run.path / METRICS_FILE, entry)
    first, second = run.metrics()
    assert first == entries[0] and math.isnan(second["loss"]) and second["kl"] == math.inf


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b'{"step": 2}', '{"text": "é'.encode()[:-1]])
def test_a_line_cut_off_by_a_kill_is_left_out_and_then_mended(run: RunDirectory, rest: bytes) -> None:
    append_jsonl(run.path / METRICS_FILE, {"step": 1})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(rest)
    assert run.metrics() == [{"step": 1}]
    append_jsonl(run.path / METRICS_FILE, {"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_a_broken_line_of_metrics_is_warned_of_and_the_later_ones_stay(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n[3]\n{"step": 4}\n', encoding="utf-8")
    assert run.metrics() == [{"step": 1}, {"step": 4}]
    assert "metrics.jsonl:2: not a line of JSON" in caplog.text and "metrics.jsonl:3" in caplog.text


def test_a_finished_model_is_found_and_a_missing_one_explained(run: RunDirectory) -> None:
    with run.locked(), pytest.raises(RunError, match=r"no trained model yet: it is running .*wait for its end"):
        _ = run.model_path
    (run.path / "model").mkdir()
    assert run.model_path == run.path / "model"


def test_a_failed_run_goes_on_from_its_checkpoint_or_begins_again(run: RunDirectory) -> None:
    run.set_status("failed", step=3)
    with pytest.raises(RunError, match=r"Repair that, then train again$"):
        _ = run.model_path
    checkpoint(run, 2)
    with pytest.raises(RunError, match=r"Repair that, then `tdpo train .* --resume` goes on from step 2$"):
        _ = run.model_path


def test_a_ppo_run_knows_its_length_its_command_and_its_files(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(ppo_recipe_for(run.path))
    assert run.status()["max_steps"] == 128 and run.recipe() == ppo_recipe_for(run.path)
    with pytest.raises(RunError, match=r"`tdpo ppo .*run --resume`"):
        _ = run.model_path
    append_jsonl(run.path / "completions.jsonl", {"step": 1})
    run.create(ppo_recipe_for(run.path), overwrite=True)
    assert not (run.path / "completions.jsonl").exists()


def test_the_command_of_a_run_with_a_damaged_recipe_is_not_asked_for(run: RunDirectory) -> None:
    (run.path / "recipe.yaml").write_text("run_dir: [", encoding="utf-8")
    assert run.command() == "tdpo train"


# Files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "\ud800")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_has_the_rights_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


WRITER = """
import sys
from pathlib import Path
from tdpo.records.json_files import write_json
n = 0
while True:
    n += 1
    write_json(Path(sys.argv[1]), {"numbers": [n] * 20_000})
    if n == 1:
        print("first", flush=True)
"""


def test_readers_see_whole_files_and_a_kill_leaves_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "first\n"
        for _ in range(100):
            numbers = json.loads(path.read_text(encoding="utf-8"))["numbers"]
            assert len(numbers) == 20_000 and len(set(numbers)) == 1
    finally:
        writer.kill()
        writer.wait()
    assert len(set(read_json(path)["numbers"])) == 1


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json: not JSON"):
        read_json(tmp_path / "a.json")


# Resuming


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.micro_batch_size=4",),
        ("training.logging_steps=5", "training.save_steps=null", "training.report_to=[tensorboard]"),
        ("evaluation.seed=9", "environment.name=sentiment", "sampling.top_k=3"),
        ("run_dir=elsewhere",),
    ],
)
def test_keys_that_leave_the_trajectory_alone_may_differ(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    changed = check_resumable(recipe_for(tmp_path), recipe_for(tmp_path, *overrides))
    assert set(changed) >= {override.partition("=")[0] for override in overrides} - {"environment.name"}


@pytest.mark.parametrize(
    "override",
    ["loss.beta=0.2", "seed=1", "model.lora.rank=8", "data.train=other.jsonl", "training.batch_size=8",
     "training.learning_rate=1", "model.lora=null", "training.epochs=2", "loss.name=dpo", "data.max_length=9"],
)  # fmt: skip
def test_keys_that_change_the_trajectory_are_refused_by_name(tmp_path: Path, override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"(?s){key}.*: the run has .*start a new run"):
        check_resumable(recipe_for(tmp_path), recipe_for(tmp_path, override))
    with pytest.raises(ValueError, match=rf"{key}.*: the run has"):
        check_resumable(recipe_for(tmp_path, override), recipe_for(tmp_path))


@pytest.mark.parametrize(
    "override",
    ["ppo.micro_batch_size=4", "ppo.gradient_checkpointing=true", "ppo.eval_every=2", "ppo.save_every=3",
     "ppo.save_total_limit=5", "ppo.report_to=[tensorboard]", "ppo.num_threads=1", "rollouts.batch_size=8",
     "rollouts.show_every=null", "evaluation.seed=9", "run_dir=elsewhere"],
)  # fmt: skip
def test_keys_that_leave_a_ppo_trajectory_alone_may_differ(tmp_path: Path, override: str) -> None:
    changed = check_resumable(ppo_recipe_for(tmp_path), ppo_recipe_for(tmp_path, override))
    assert set(changed) == {override.partition("=")[0]}


@pytest.mark.parametrize(
    "override",
    ["kl.coefficient=0.2", "kl.target=3", "seed=1", "rollouts.completions=32", "rollouts.max_new_tokens=3",
     "rollouts.merge_adapter=false", "ppo.epochs=3", "ppo.minibatch_size=64", "ppo.learning_rate=1", "ppo.gamma=0.9",
     "environment.name=other", "model.lora.rank=8", "ppo.iterations=20"],
)  # fmt: skip
def test_keys_that_change_a_ppo_trajectory_are_refused_by_name(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match=rf"{override.partition('=')[0]}: the run has .*"):
        check_resumable(ppo_recipe_for(tmp_path), ppo_recipe_for(tmp_path, override))


def test_a_recipe_of_the_other_kind_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the run is one of PPO \(`tdpo ppo`\), the recipe is one on preferences"):
        check_resumable(ppo_recipe_for(tmp_path), recipe_for(tmp_path))
    with pytest.raises(ValueError, match=r"the run is one on preferences \(`tdpo train`\), the recipe is one of PPO"):
        check_resumable(recipe_for(tmp_path), ppo_recipe_for(tmp_path))


def test_a_ppo_run_of_constant_learning_rate_may_be_lengthened(tmp_path: Path) -> None:
    constant = "ppo.scheduler=constant"
    stored, given = (ppo_recipe_for(tmp_path, constant, f"ppo.iterations={n}") for n in (5, 9))
    assert check_resumable(stored, given) == {"ppo.iterations": [5, 9]}


def test_a_run_of_constant_learning_rate_may_be_lengthened(tmp_path: Path) -> None:
    constant = "training.scheduler=constant"
    stored, given = (recipe_for(tmp_path, constant, f"training.max_steps={n}") for n in (5, 9))
    assert check_resumable(stored, given) == {"training.max_steps": [5, 9]}


def test_resuming_stores_the_recipe_and_notes_when_and_why(run: RunDirectory) -> None:
    checkpoint(run, 8)
    run.take_up(recipe_for(run.path, "training.logging_steps=2"))
    assert run.recipe().training.logging_steps == 2
    (entry,) = run.read_json("environment.json")["resumed"]
    assert entry["step"] == 8 and entry["changed"] == {"training.logging_steps": [1, 2]} and entry["started"]


def test_resuming_with_another_recipe_changes_nothing(run: RunDirectory) -> None:
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    with pytest.raises(RunError, match=textwrap.dedent(r"cannot be resumed with this recipe:\n  seed: the run has 0")):
        run.take_up(recipe_for(run.path, "seed=1"))
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before


def test_a_damaged_stored_recipe_is_named(run: RunDirectory) -> None:
    (run.path / "recipe.yaml").write_text("run_dir: [", encoding="utf-8")
    with pytest.raises(RunError, match=r"recipe.yaml:1: is not valid YAML"):
        run.take_up(recipe_for(run.path))
    with pytest.raises(RecipeError):
        run.recipe()
