"""Checkpoints that are damaged, rotated, resumed with other inputs; models that are saved over what was cut off."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, make_trainer, plain_rows, train_logs
from tdpo.records.folders import staged_folder
from tdpo.records.full_disk import telling_of_a_full_disk
from tdpo.runs.checkpoints import (
    COMPLETE,
    DamagedCheckpoint,
    damage_of,
    find_checkpoints,
    mark_complete,
    rotate_checkpoints,
)
from tdpo.runs.inputs import ChangedInputs
from tdpo.training import TDPOTrainer


def new_trainer(folder: Path, rows: Any = None, **changes: Any) -> TDPOTrainer:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, **changes}
    rows = plain_rows(6) if rows is None else rows
    return make_trainer(build_model("llama"), folder, build_tokenizer(), rows, peft_config=lora("q_proj"), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of four updates with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    new_trainer(folder).train()
    yield folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


FILES = (
    "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json", "training_args.bin", "inputs.json", "training_loss.json",
)  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_each_damaged_file_is_named_beside_the_older_whole_one(trained: Path, tmp_path: Path, damage: str) -> None:
    names = {path.name for path in (trained / "checkpoint-4").iterdir()}
    assert set(FILES) <= names
    for name in names - {COMPLETE}:
        run = Path(shutil.copytree(trained, tmp_path / name))
        path = run / "checkpoint-4" / name
        if damage == "missing":
            path.unlink()
        else:
            os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
        with pytest.raises(DamagedCheckpoint, match=rf"checkpoint-4 is damaged: {name} .*checkpoint-2 .*--last-good"):
            new_trainer_stub(run).train(resume_from_checkpoint=True)


def new_trainer_stub(folder: Path) -> Any:
    """A trainer whose `train` ends before anything is trained: what is asked of is only which checkpoint it takes."""
    from tdpo.training.resumption import whole_checkpoint

    class Stub:
        def train(self, resume_from_checkpoint: bool) -> str | None:
            return whole_checkpoint(resume_from_checkpoint, folder)

    return Stub()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_mark_without_sizes_still_finds_what_is_cut(run: Path, name: str) -> None:
    """As earlier versions wrote it."""
    (run / "checkpoint-4" / COMPLETE).write_text("2026-01-01T00:00:00+00:00\n")
    assert damage_of(run / "checkpoint-4") is None
    path = run / "checkpoint-4" / name
    os.truncate(path, path.stat().st_size // 2)
    assert (damage_of(run / "checkpoint-4") or "").startswith(name)


def test_a_foreign_pickle_is_named_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Foreign:
        def __reduce__(self) -> Any:
            return (Path.touch, (mark,))

    torch.save({"state": Foreign()}, run / "checkpoint-4" / "optimizer.pt")
    mark_complete(run / "checkpoint-4")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint-4: the state of optimizer.*cannot be read"):
        new_trainer(run).train(resume_from_checkpoint=True)
    assert not mark.exists()


def test_all_files_are_synced_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / "deep").mkdir(parents=True)
    for name in ("a.bin", "deep/b.bin"):
        (checkpoint / name).write_bytes(b"x")
    synced: list[str] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    mark_complete(checkpoint)
    written = next(n for n, name in enumerate(synced) if name.startswith(f".{COMPLETE}."))
    assert {"a.bin", "b.bin", "deep", "checkpoint-1"} <= set(synced[:written])
    assert "checkpoint-1" in synced[written + 1 :], "the mark's own name too"


# Rotation


def made(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        mark_complete(checkpoint)


def steps_in(folder: Path) -> list[str]:
    return [path.name.removeprefix("checkpoint-") for path in find_checkpoints(folder).complete]


def test_rotation_goes_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    made(tmp_path, 2, 4, 6, 8)
    for step in (6, 8):  # written after the clock was set back
        os.utime(tmp_path / f"checkpoint-{step}", (1, 1))
    rotate_checkpoints(tmp_path, 2, newest=8)
    assert steps_in(tmp_path) == ["6", "8"]


def test_rotation_keeps_the_new_one_and_the_best_and_clears_what_was_given_up(tmp_path: Path) -> None:
    made(tmp_path, 2, 4, 10, 12)
    (tmp_path / "checkpoint-11").mkdir()
    rotate_checkpoints(tmp_path, None, newest=4)
    assert (tmp_path / "checkpoint-11").exists(), "without a limit nothing is deleted"
    rotate_checkpoints(tmp_path, 2, newest=4)
    assert steps_in(tmp_path) == ["2", "4"] and not (tmp_path / "checkpoint-11").exists()
    made(tmp_path, 6)
    rotate_checkpoints(tmp_path, 1, newest=6, keep=tmp_path / "checkpoint-2")
    assert steps_in(tmp_path) == ["2", "6"]


def test_a_clock_set_back_during_training_deletes_nothing_new(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, save_steps=1, save_total_limit=1)
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (2e9 - state.global_step,) * 2)

    trainer.add_callback(Clock())
    trainer.train()
    assert steps_in(tmp_path) == ["4"]


# Inputs


def test_other_rows_are_named_and_refused_or_accepted(run: Path) -> None:
    rows = plain_rows(6)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    for other in (swapped, rows[:4], rows[::-1]):
        count = len(other)
        with pytest.raises(ChangedInputs, match=rf"training pairs: was 6 pairs \(\w+\), is {count} pairs"):
            new_trainer(run, other).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    trainer = new_trainer(run, swapped)
    trainer.accept_changes = True
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert trainer.state.global_step == 4
    with pytest.raises(ChangedInputs):  # the new checkpoint was trained with the swapped rows
        new_trainer(run, rows).train(resume_from_checkpoint=str(run / "checkpoint-4"))


# The summary


def test_the_loss_of_the_summary_is_over_all_updates_of_the_run(trained: Path, run: Path) -> None:
    def summary(folder: Path) -> dict[str, Any]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return next(line for line in lines if line["split"] == "summary")

    shutil.rmtree(run / "checkpoint-4")
    trainer = new_trainer(run)
    result = trainer.train(resume_from_checkpoint=True)
    expected = sum(line["loss"] for line in train_logs(trainer)) / 4
    assert summary(run)["train_loss"] == pytest.approx(expected)
    assert summary(run)["train_loss"] == pytest.approx(summary(trained)["train_loss"])
    assert result.training_loss == result.metrics["train_loss"] == summary(run)["train_loss"]


def test_losses_that_were_not_logged_before_the_checkpoint_count(tmp_path: Path) -> None:
    whole = new_trainer(tmp_path / "whole", logging_steps=3).train()
    shutil.rmtree(tmp_path / "whole" / "checkpoint-4")
    resumed = new_trainer(tmp_path / "whole", logging_steps=3).train(resume_from_checkpoint=True)
    assert resumed.training_loss == pytest.approx(whole.training_loss)


def test_a_broken_line_of_metrics_is_named_and_the_others_kept(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run / "metrics.jsonl"
    first, _, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, '{"step": 2, "lo', *others]) + "\n")
    new_trainer(run, max_steps=5).train(resume_from_checkpoint=True)
    assert "metrics.jsonl:2: not a line of JSON" in caplog.text
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 3, 4, 5]


# Links and left-overs


def test_a_checkpoint_is_written_into_an_empty_folder_and_through_no_link(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    run.mkdir()
    (run / "checkpoint-2").symlink_to(elsewhere)
    (run / "checkpoint-4").mkdir()
    (run / "checkpoint-4" / "model.safetensors").write_text("of a save that was cut off")
    (run / "metrics.tmp").symlink_to(elsewhere / "mine")
    new_trainer(run).train()
    assert [path.name for path in elsewhere.iterdir()] == ["mine"] and (elsewhere / "mine").read_text() == "mine"
    assert not (run / "checkpoint-2").is_symlink() and damage_of(run / "checkpoint-2") is None
    assert not (run / "checkpoint-4" / "model.safetensors").exists()


def test_metrics_are_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "mine")
    new_trainer(tmp_path / "run", max_steps=1, save_strategy="no").train()
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "run" / "metrics.jsonl").is_symlink()


def test_what_is_staged_starts_empty_and_replaces_a_link(tmp_path: Path) -> None:
    place, staging, elsewhere = tmp_path / "model", tmp_path / ".model", tmp_path / "elsewhere"
    for folder in (staging, elsewhere):
        folder.mkdir()
        (folder / "old").write_text("old")
    place.symlink_to(elsewhere)
    with staged_folder(place, staging) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in place.iterdir()] == ["new"] and not place.is_symlink() and not staging.exists()
    staging.symlink_to(elsewhere)
    with pytest.raises(ZeroDivisionError), staged_folder(place, staging):
        raise ZeroDivisionError
    assert [path.name for path in place.iterdir()] == ["new"] and not staging.is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["old"]


# A full disk


def test_a_full_disk_is_told_with_its_folder_whoever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    place = tmp_path / "checkpoint-3"
    for error in (
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        told = pytest.raises(OSError, match=r"No space left on device \([\d,]+ bytes free\)")
        with told as caught, telling_of_a_full_disk(place):
            raise error
        assert caught.value.filename == str(place) and caught.value.errno == 28
    sized = pytest.raises(OSError, match=r"\(at least 1,234 bytes to write, [\d,]+ bytes free\); free some")
    with sized, telling_of_a_full_disk(place, 1234):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    torch_error = RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 320 vs 214")
    with pytest.raises(RuntimeError), telling_of_a_full_disk(place):
        raise torch_error  # with room on the disk it is another fault
    monkeypatch.setattr("tdpo.records.full_disk.free_bytes", lambda _: 4096)
    with pytest.raises(OSError, match="No space left"), telling_of_a_full_disk(place):
        raise torch_error
