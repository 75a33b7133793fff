"""`--overwrite`: an old run stays until all is checked, and is kept until the new one has saved a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.run_cases import go, ppo_recipe_in, recipe_in, write_inputs, write_rows
from helpers.training_cases import plain_rows
from tdpo.config import AnyRecipe
from tdpo.records.json_files import append_jsonl, write_json
from tdpo.records.names import METRICS_FILE
from tdpo.runs import RunDirectory, RunError


@pytest.fixture
def old(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The inputs of runs, and a finished run in `run`."""
    write_inputs(tmp_path, tiny_folder("llama"))
    finished_run(recipe_in(tmp_path))
    return tmp_path


def finished_run(recipe: AnyRecipe) -> RunDirectory:
    """What a finished run leaves, as far as it matters here, with a file of the user's own."""
    run = RunDirectory(recipe.run_dir)
    run.create(recipe)
    append_jsonl(run.path / METRICS_FILE, {"step": 4})
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    write_json(run.path / "evaluation.json", {"schema": 1})
    (run.path / "mine.txt").write_text("mine")
    run.set_status("finished", step=4, max_steps=4)
    return run


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


BROKEN: dict[str, tuple[str, ...]] = {
    "a mistyped model": ("model.name=no-such-model",),
    "a broken row": ("data.train=broken.jsonl",),
    "a missing file": ("data.train=nowhere.jsonl",),
    "nothing held out": ("data.eval_fraction=0.01",),
    "a wrong LoRA target": ("model.lora.targets=[no_such_layer]",),
    "a batch that cannot be split": ("training.micro_batch_size=2",),
    "another reference": ("model.reference=./nowhere",),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_can_be_checked_is_checked_before_the_old_run_is_touched(
    old: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old)
    write_rows(old / "broken.jsonl", [*plain_rows(2), {"prompt": "x", "chosen": "y"}])
    before, moved = content(old / "run"), []
    monkeypatch.setattr("tdpo.runs.directory.make_way", lambda *arguments, **_: moved.append(arguments))
    with pytest.raises(Exception, match=r"\w"):
        go(recipe_in(old, *BROKEN[reason]), overwrite=True)
    assert content(old / "run") == before and not moved


@pytest.mark.parametrize(
    "override", ["model.name=no-such-model", "model.lora.targets=[no_such_layer]", "environment.reward=nowhere.py:none"]
)
def test_ppo_checks_first_too(old: Path, override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    before, moved = content(old / "run"), []
    monkeypatch.setattr("tdpo.runs.directory.make_way", lambda *arguments, **_: moved.append(arguments))
    with pytest.raises(Exception, match=r"\w"):
        go(ppo_recipe_in(old, override), overwrite=True)
    assert content(old / "run") == before and not moved


def test_the_old_run_is_let_go_of_once_the_new_one_has_a_model(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdpo.workflows import training_run

    before, kept = content(old / "run"), {}
    save = training_run.save_trained

    def saved(trainer: Any, run: RunDirectory, card: str) -> Path:
        kept.update(content(run.path / "replaced-run"))
        return save(trainer, run, card)

    monkeypatch.setattr(training_run, "save_trained", saved)
    run = go(recipe_in(old, "seed=1"), overwrite=True)
    assert kept == {name: value for name, value in before.items() if name != "mine.txt"}
    assert run.state() == "finished" and run.recipe().seed == 1 and run.replaced_run() is None
    assert (run.path / "mine.txt").exists() and not (run.path / "evaluation.json").exists()
    assert json.loads((run.path / "data.json").read_text())["train"]["pairs"] == 6


def test_a_failure_before_the_first_update_puts_the_old_run_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(old / "run")

    def fails(*_: Any) -> Any:
        raise MemoryError("no memory for a step")

    monkeypatch.setattr("tdpo.training.offline.trainer.TDPOTrainer.training_step", fails)
    with pytest.raises(MemoryError):
        go(recipe_in(old, "seed=1"), overwrite=True)
    assert content(old / "run") == before


def test_an_error_while_the_old_run_is_moved_leaves_it_where_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = content(old / "run"), Path.rename

    def refuses(self: Path, target: Any) -> Any:
        if self.name == "model" and Path(target).parent.name.startswith(".run-being"):
            raise PermissionError(13, "Permission denied", str(self))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuses)
        with pytest.raises(PermissionError), RunDirectory.training(recipe_in(old, "seed=1"), overwrite=True) as run:
            run.begin()
    assert run.has_put_back and content(run.path) == before


def test_a_later_failure_keeps_both_and_the_new_one_can_go_on(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdpo.training.offline.trainer import TDPOTrainer

    before = {name: value for name, value in content(old / "run").items() if name != "mine.txt"}
    step = TDPOTrainer.training_step

    def fails_at_three(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == 3:
            raise FloatingPointError("the loss became nan")
        return step(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TDPOTrainer, "training_step", fails_at_three)
        with pytest.raises(FloatingPointError):
            go(recipe_in(old, "seed=1"), overwrite=True)
    run = RunDirectory(old / "run")
    assert run.state() == "failed" and run.resume_step() == 2 and run.replaced_run() == run.path / "replaced-run"
    assert content(run.path / "replaced-run") == before and RunDirectory.open(run.path / "replaced-run").model_path
    with pytest.raises(RunError, match=r"failed at update 3 of 4.*--resume continues it.*is kept in .*replaced-run"):
        go(recipe_in(old))
    with pytest.raises(RunError, match=r"no trained model: training failed .* is kept: .*replaced-run"):
        _ = run.model_path
    go(recipe_in(old, "seed=1"), resume=True)
    assert run.state() == "finished" and run.replaced_run() is None


def test_a_third_run_replaces_the_one_without_a_model_and_the_first_is_kept(old: Path) -> None:
    run = RunDirectory(old / "run")
    first = content(run.path)
    run.create(recipe_in(old, "seed=1"), overwrite=True)
    run.set_status("interrupted", step=3)
    run.create(recipe_in(old, "seed=2"), overwrite=True)
    assert run.recipe().seed == 2
    assert content(run.path / "replaced-run") == {name: value for name, value in first.items() if name != "mine.txt"}


# Killed


class Killed(BaseException):
    """In place of a SIGKILL: from here on the process changes nothing on the disk."""


def killed_at(folder: Path, number: int) -> bool:
    """Replace the run, killed at the `number`-th change of a name; False where there are fewer."""
    changes = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            change = getattr(Path, name)

            def counted(self: Path, *arguments: Any, change: Any = change, **more: Any) -> Any:
                nonlocal changes
                changes += 1
                if changes >= number:
                    raise Killed
                return change(self, *arguments, **more)

            patch.setattr(Path, name, counted)
        patch.setattr("tdpo.runs.directory.describe_machine", lambda seed: {"seed": seed})
        end = RunDirectory._record_the_end
        patch.setattr(RunDirectory, "_record_the_end", lambda *a, **k: None if changes >= number else end(*a, **k))
        try:
            with RunDirectory.training(recipe_in(folder, "seed=1"), overwrite=True) as run:
                run.begin()
                raise ZeroDivisionError  # and back again
        except Killed:
            return True
        except ZeroDivisionError:
            return False


def test_a_kill_at_any_moment_of_the_change_loses_no_file(old: Path) -> None:
    before, recipe = content(old / "run"), recipe_in(old)
    number = 2  # the first is the folder of the lock
    while killed_at(old, number):
        run = RunDirectory(old / "run")
        assert not run.is_run() or run.recipe().seed in (0, 1)
        assert "--overwrite replaces it" in str(run.why_not_new()), "what `tdpo doctor` says"
        with pytest.raises(RunError, match="--overwrite replaces it"):
            run.create(recipe)
        assert content(run.path) == before, f"the old run stands again after a kill at change {number}"
        number += 1
    assert number > 20 and content(old / "run") == before


def test_a_killed_run_that_made_an_update_keeps_the_old_one(old: Path) -> None:
    run = RunDirectory(old / "run")
    run.create(recipe_in(old, "seed=1"), overwrite=True)
    run.set_status("running", step=1, max_steps=4)
    said = r"was killed at update 1 of 4, last seen on .*: --resume continues it.* is kept in .*replaced-run"
    for recipe in (recipe_in(old), recipe_in(old, "seed=1")):
        with pytest.raises(RunError, match=said):
            run.create(recipe)
    with RunDirectory.training(recipe_in(old, "seed=1"), resume=True) as again:
        assert again.recipe().seed == 1 and again.replaced_run() is not None


def test_a_run_killed_between_its_model_and_letting_go_lets_go_later(old: Path) -> None:
    run = RunDirectory(old / "run")
    run.create(recipe_in(old, "seed=1"), overwrite=True)
    (run.path / "model").mkdir()
    run.set_status("running", step=4, max_steps=4)
    with pytest.raises(RunError, match="was killed at update 4 of 4"):
        run.create(recipe_in(old))
    assert run.replaced_run() is None and run.recipe().seed == 1
