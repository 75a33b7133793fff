"""Killed with SIGKILL at any moment and resumed, a run ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from helpers.several_processes import clean_processes
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import (
    METRICS,
    StopAt,
    lora,
    make_trainer,
    plain_rows,
    train_logs,
    trained_weights,
)
from tdpo.runs.checkpoints import COMPLETE, find_checkpoints
from tdpo.training import TDPOTrainer
from tdpo.training.offline.config import grouping_by_length

# 10 pairs at 2 × 2 an update are 3 updates an epoch, the last of one micro-batch; 10 updates end within the fourth.
UPDATES, SAVE_STEPS = 10, 2
KINDS = ["full", "lora with dropout"]


def new_trainer(folder: Path, kind: str, **changes: Any) -> TDPOTrainer:
    return make_trainer(
        build_model("llama"),
        folder,
        build_tokenizer(),
        plain_rows(10),
        peft_config=None if kind == "full" else lora(lora_dropout=0.3),
        eval_rows=plain_rows(3, seed=1),
        **{
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": UPDATES,
            "learning_rate": 2e-3,
            "warmup_steps": 3,
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            "save_total_limit": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_only_model": False,
            **changes,
        },
    )


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def victim(folder: str, kind: str, death: str, step: int) -> None:
    """Train until killed: after an update, while a checkpoint is written, or from outside at any moment."""
    torch.set_num_threads(1)
    trainer = new_trainer(Path(folder), kind)
    if death == "after an update":
        trainer.add_callback(StopAt(step, kill_myself))
    elif death == "while saving":
        save = trainer._save_optimizer_and_scheduler

        def half_saved(output_dir: str) -> None:
            if trainer.state.global_step == step:
                (Path(output_dir) / "optimizer.pt").write_bytes(b"half of")
                kill_myself()
            save(output_dir)

        trainer._save_optimizer_and_scheduler = half_saved  # type: ignore[method-assign]
    trainer.train()


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    with clean_processes(__name__) as context:
        yield context


def killed(context: Any, folder: Path, kind: str, death: str, step: int) -> None:
    """Run `victim` in a process of its own and see it die."""
    process = context.Process(target=victim, args=(str(folder), kind, death, step))
    process.start()
    if death == "at any moment":
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= step):
            assert process.is_alive(), "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TDPOTrainer]:
    made: dict[str, TDPOTrainer] = {}

    def trainer(kind: str) -> TDPOTrainer:
        if kind not in made:
            made[kind] = new_trainer(tmp_path_factory.mktemp("whole"), kind)
            made[kind].train()
        return made[kind]

    return trainer


def metrics_of(trainer: TDPOTrainer) -> list[dict[str, Any]]:
    lines = (Path(str(trainer.args.output_dir)) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def compare(resumed: TDPOTrainer, whole: TDPOTrainer) -> None:
    weights = trained_weights(whole)
    for name, weight in trained_weights(resumed).items():
        assert torch.equal(weight, weights[name]), f"{name}: {(weight - weights[name]).abs().max()}"
    found, expected = metrics_of(resumed), metrics_of(whole)
    assert [(line["split"], line["step"]) for line in found] == [(line["split"], line["step"]) for line in expected]
    assert [line["step"] for line in found if line["split"] == "train"] == list(range(1, UPDATES + 1))
    for mine, theirs in zip(found, expected, strict=True):
        if mine["split"] != "summary":
            assert {name: mine[name] for name in METRICS} == {name: theirs[name] for name in METRICS}
    times = [line["time_s"] for line in found]
    assert times == sorted(times), "the clock goes on where it stopped"


DEATHS = {
    "full": ["after an update", "while saving", "at any moment"],
    "lora with dropout": ["after an update", "at any moment"],
}
# Each death at a step of its own, drawn once; a checkpoint is half-written only where one is due.
DRAW = random.Random(2024)
CASES = [
    pytest.param(kind, death, DRAW.randrange(4, UPDATES, 2) if death == "while saving" else DRAW.randrange(3, UPDATES))
    for kind, deaths in DEATHS.items()
    for death in deaths
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, death, step", CASES)
def test_a_killed_run_resumes_to_the_same_weights(
    kind: str,
    death: str,
    step: int,
    processes: Any,
    uninterrupted: Callable[[str], TDPOTrainer],
    tmp_path: Path,
) -> None:
    killed(processes, tmp_path, kind, death, step)
    checkpoints = find_checkpoints(tmp_path)
    assert checkpoints.newest is not None, "with save_total_limit=1 too there is one to resume from"
    if death == "while saving":
        assert [path.name for path in checkpoints.incomplete] == [f"checkpoint-{step}"]
        assert checkpoints.newest.name == f"checkpoint-{step - SAVE_STEPS}"
    resumed = new_trainer(tmp_path, kind)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == UPDATES
    assert train_logs(resumed)
    compare(resumed, uninterrupted(kind))


def test_stopped_twice(uninterrupted: Callable[[str], TDPOTrainer], tmp_path: Path) -> None:
    """At steps that are no save steps, in different epochs, and resumed in the same process."""
    for step in (5, 9):
        trainer = new_trainer(tmp_path, "lora with dropout")
        trainer.add_callback(StopAt(step))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=bool(find_checkpoints(tmp_path).complete))
    last = new_trainer(tmp_path, "lora with dropout")
    last.train(resume_from_checkpoint=True)
    compare(last, uninterrupted("lora with dropout"))


def test_batches_grouped_by_length_and_packed_resume_in_their_order(tmp_path: Path) -> None:
    """Within the second epoch, whose order hangs on the epoch; the adapter's dropout has moved the random state."""
    changes = {**grouping_by_length(), "max_tokens_per_row": 64}
    whole = new_trainer(tmp_path / "whole", "lora with dropout", **changes)
    whole.train()
    stopped = new_trainer(tmp_path / "stopped", "lora with dropout", **changes)
    stopped.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = new_trainer(tmp_path / "stopped", "lora with dropout", **changes)
    resumed.train(resume_from_checkpoint=True)
    compare(resumed, whole)


def test_a_coefficient_that_changes_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The coefficient of the KL beside the loss is the trainer's state, and not only its argument."""

    class Doubled(TrainerCallback):
        def __init__(self, trainer: TDPOTrainer) -> None:
            self.loss = trainer.preference_loss

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.loss.kl_coefficient *= 2

    def trainer(folder: str, stop: int | None = None) -> TDPOTrainer:
        made = new_trainer(tmp_path / folder, "full", kl={"direction": "reverse"}, max_steps=6, eval_strategy="no")
        made.add_callback(Doubled(made))
        if stop is not None:
            made.add_callback(StopAt(stop))
        return made

    whole = trainer("whole")
    whole.train()
    assert [line["kl_coefficient"] for line in train_logs(whole)] == [0.1 * 2**n for n in range(1, 7)]
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", stop=3).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    for name, weight in trained_weights(whole).items():
        assert torch.equal(trained_weights(resumed)[name], weight), name


def test_a_coefficient_with_a_target_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """To the bit, though the update that was cut off had begun: λ, and the averages that it follows."""

    def trainer(folder: str, stop: int | None = None) -> TDPOTrainer:
        made = new_trainer(tmp_path / folder, "full", kl={"target": 0.05}, max_steps=6, eval_strategy="no")
        if stop is not None:
            made.add_callback(StopAt(stop))
        return made

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", stop=3).train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    found, expected = ([line["kl_coefficient"] for line in train_logs(made)] for made in (resumed, whole))
    assert found == expected and len(set(found)) > 3
    assert {line["kl_target"] for line in train_logs(resumed)} == {0.05}
    for name, weight in trained_weights(whole).items():
        assert torch.equal(trained_weights(resumed)[name], weight), name


def test_a_half_written_last_line_of_metrics_is_dropped(
    uninterrupted: Callable[[str], TDPOTrainer], tmp_path: Path
) -> None:
    trainer = new_trainer(tmp_path, "full")
    trainer.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')
    resumed = new_trainer(tmp_path, "full")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    compare(resumed, uninterrupted("full"))


def test_checkpoints_that_were_cut_short_are_not_resumed_from(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, "full", max_steps=4, save_total_limit=None)
    with pytest.raises(ValueError, match=r"holds no checkpoint to resume from\. Start without resume_from_checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    assert [path.name for path in find_checkpoints(tmp_path).complete] == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4" / COMPLETE).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 was cut short while it was written.*resume from another"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    again = new_trainer(tmp_path, "full", max_steps=4, save_total_limit=None)
    again.train(resume_from_checkpoint=True)
    assert [line["step"] for line in train_logs(again)] == [1, 2, 3, 4], "its history goes on from checkpoint-2"
    assert again.state.global_step == 4
    (tmp_path / "checkpoint-2" / COMPLETE).unlink()
    (tmp_path / "checkpoint-4" / COMPLETE).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint to resume from; 2 were cut short"):
        again.train(resume_from_checkpoint=True)


def test_old_checkpoints_go_only_once_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With save_total_limit=1, transformers deletes the old checkpoint before the new one could be marked."""
    seen: list[list[str]] = []

    def spy(folder: str, *args: Any, **kwargs: Any) -> None:
        seen.append([path.name for path in find_checkpoints(Path(folder)).complete])
        rotate(folder, *args, **kwargs)

    from tdpo.training import checkpointed_trainer

    rotate = checkpointed_trainer.rotate_checkpoints
    monkeypatch.setattr(checkpointed_trainer, "rotate_checkpoints", spy)
    trainer = new_trainer(tmp_path, "full", max_steps=6)
    trainer.train()
    assert seen == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert [path.name for path in find_checkpoints(tmp_path).complete] == ["checkpoint-6"]
    assert trainer.args.save_total_limit == 1


def test_a_fresh_run_in_the_same_folder_starts_its_metrics_anew(tmp_path: Path) -> None:
    for updates in (4, 2):
        new_trainer(tmp_path, "full", max_steps=updates, save_strategy="no").train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]
