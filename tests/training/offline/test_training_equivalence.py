"""One update is one update: however it is split, laid out or recomputed, and on however many processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from helpers.devices import device, rounding
from helpers.several_processes import run_two_processes
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import (
    METRICS,
    lora,
    make_trainer,
    plain_rows,
    train_logs,
    trained_weights,
)
from tdpo.training.callbacks import GracefulStop
from tdpo.training.offline.config import TDPOConfig, grouping_by_length

# 20 pairs at 8 an update are 8, 8 and a ragged 4; five updates go into a second, reshuffled epoch.
ROWS, GLOBAL_BATCH, UPDATES = 20, 8, 5
KINDS = ["full", "lora"]
ADAPTED_HEAD = {"lora": ("lm_head",), "frozen head": ()}
SPLITS = {"8": (8, 1), "4 × 2": (4, 2), "1 × 8": (1, 8)}


def run(kind: str, folder: Path, *, batch: int = 8, accumulation: int = 1, rows: int = ROWS, **changes: Any) -> Any:
    """Train the same model on the same pairs; only what is passed differs."""
    model = build_model("llama")  # its head is not tied: a weight that only the operator touches
    model.accepts_loss_kwargs = changes.pop("accepts_loss_kwargs", True)
    trainer = make_trainer(
        model,
        folder,
        build_tokenizer(),
        plain_rows(rows),
        peft_config=None if kind == "full" else lora("q_proj", "v_proj", "down_proj", *ADAPTED_HEAD[kind]),
        **{
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": UPDATES,
            "learning_rate": 1e-2 if kind == "full" else 6e-2,
            "optim": "sgd",
            "weight_decay": 0.1,
            **changes,
        },
    )
    trainer.train()
    return trainer


def agree(found: Any, expected: Any) -> None:
    """Logs and weights to float32 rounding."""
    room = rounding()
    for mine, theirs in zip(train_logs(found), train_logs(expected), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=room * 1e-5, abs=room * 1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=room * 1e-4)
        for name in METRICS:
            assert mine[name] == pytest.approx(theirs[name], rel=room * 1e-4, abs=room * 1e-4), name
    weights = trained_weights(expected)
    assert max(float(w.abs().max()) for w in weights.values()) > 0.1
    for name, weight in trained_weights(found).items():
        torch.testing.assert_close(
            weight, weights[name], rtol=room * 1e-5, atol=room * 2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def one_large_batch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def trainer(kind: str) -> Any:
        if kind not in made:
            made[kind] = run(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_worth_comparing(kind: str, one_large_batch: Callable[[str], Any]) -> None:
    logs = train_logs(one_large_batch(kind))
    assert len(logs) == UPDATES
    assert logs[-1]["chosen_forward_kl"] > 1e-2
    assert 0.02 < logs[-1]["loss"] < 0.65


@pytest.mark.parametrize("split", list(SPLITS)[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_batches_give_the_update_of_one_large_batch(
    kind: str, split: str, one_large_batch: Callable[[str], Any], tmp_path: Path
) -> None:
    batch, accumulation = SPLITS[split]
    agree(run(kind, tmp_path, batch=batch, accumulation=accumulation), one_large_batch(kind))


def test_accumulation_does_not_depend_on_the_models_own_loss(
    one_large_batch: Callable[[str], Any], tmp_path: Path
) -> None:
    """Where a model's loss takes no count of items, transformers divides by the number of micro-batches."""
    agree(run("full", tmp_path, batch=2, accumulation=4, accepts_loss_kwargs=False), one_large_batch("full"))


def test_the_same_under_the_usual_optimizer(tmp_path: Path) -> None:
    large, small = (
        run("full", tmp_path, batch=batch, accumulation=8 // batch, optim="adamw_torch", learning_rate=1e-3)
        for batch in (8, 1)
    )
    for mine, theirs in zip(train_logs(small), train_logs(large), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=rounding() * 1e-5)
    weights = trained_weights(large)
    for name, weight in trained_weights(small).items():
        # Adam divides by the gradient's size: where that is all rounding, so is the step of at most 1e-3.
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=rounding() * 2e-5)


@pytest.mark.parametrize(
    "change", [{"prefix_sharing": "off"}, {"max_tokens_per_row": 64}, {"head_impl": "dense"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_implementation_change_nothing(
    kind: str, change: dict[str, Any], one_large_batch: Callable[[str], Any], tmp_path: Path
) -> None:
    agree(run(kind, tmp_path, **change), one_large_batch(kind))


def test_packing_computes_fewer_tokens_for_the_same_update(tmp_path: Path) -> None:
    """The runs compared above differ in what they compute, and packed rows accumulate like any others."""
    shared, packed = (run("full", tmp_path, max_tokens_per_row=budget, max_steps=1) for budget in (None, 64))
    assert packed.describe().endswith("Layout: pairs share their prompt, packed into rows of at most 64 tokens.")
    computed = [t.data_collator(t.train_dataset[:8])["input_ids"].shape for t in (shared, packed)]
    assert computed[1][0] < computed[0][0] == 8
    assert computed[1].numel() < 0.9 * computed[0].numel()
    agree(run("full", tmp_path, max_tokens_per_row=64, max_steps=1, batch=4, accumulation=2), packed)


def test_grouped_batches_are_the_same_however_an_update_is_split(tmp_path: Path) -> None:
    changes = {**grouping_by_length(), "max_tokens_per_row": 64}
    agree(run("lora", tmp_path, batch=2, accumulation=4, **changes), run("lora", tmp_path, **changes))


BESIDE = {
    "reverse": {"kind": "frozen head", "loss": "dpo", "kl": {"direction": "reverse", "coefficient": 3.0}},
    "forward": {"kind": "full", "loss": "ipo", "kl": {"on": "rejected", "coefficient": 30.0}},
    "per token": {"kind": "full", "loss": "simpo", "kl": {"direction": "reverse", "coefficient": 3.0}},
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_kl_beside_the_loss_is_one_trajectory_too(name: str, tmp_path: Path) -> None:
    """In every layout, on every head path, from a cache, and however an update is split."""
    case: dict[str, Any] = {**BESIDE[name], "max_steps": 3}
    one, alone = run(folder=tmp_path / "one", **case), run(folder=tmp_path / "alone", **{**case, "kl": None})
    logs, side = train_logs(one), "rejected_forward_kl" if name == "forward" else "chosen_reverse_kl"
    assert logs[0]["kl_term"] == pytest.approx(0.0, abs=1e-5) and logs[-1]["kl_term"] > 1e-3
    assert {line["kl_coefficient"] for line in logs} == {case["kl"]["coefficient"]}
    assert not {"kl_term", "kl_coefficient"} & train_logs(alone)[0].keys()
    assert logs[-1][side] < 0.95 * train_logs(alone)[-1][side], "it holds what it is put on"
    for folder, change in {
        "packed": {"batch": 2, "accumulation": 4, "max_tokens_per_row": 64, "reference": "cache"},
        "padded": {"batch": 4, "accumulation": 2, "prefix_sharing": "off", "head_impl": "tiled"},
    }.items():
        other = run(folder=tmp_path / folder, **{**case, **change})
        for trainer in (one, other):
            train_logs(trainer)[0]["accuracy"] = 0.0  # of margins that are 0 up to rounding
        agree(other, one)
        assert train_logs(other)[-1]["kl_term"] == pytest.approx(logs[-1]["kl_term"], rel=rounding() * 1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(
    kind: str, reentrant: bool, one_large_batch: Callable[[str], Any], tmp_path: Path
) -> None:
    kwargs = {"use_reentrant": True} if reentrant else None
    # Versions of transformers before 5.23 know the options by their older names alone.
    name = "activation_checkpointing" if hasattr(TDPOConfig, "activation_checkpointing") else "gradient_checkpointing"
    trainer = run(kind, tmp_path, **{name: True, f"{name}_kwargs": kwargs})
    assert getattr(trainer.accelerator.unwrap_model(trainer.model), f"is_{name}")
    agree(trainer, one_large_batch(kind))


# ---- two processes ----


def distributed_run(folder: Path) -> None:
    """What every process does, launched or alone: full and adapter training, an evaluation, a checkpoint."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    found: dict[str, Any] = {"processes": processes}
    for kind in KINDS:
        trainer = run(
            kind,
            folder / kind,
            batch=2 if processes == 2 else 4,
            accumulation=2,
            max_tokens_per_row=64 if kind == "lora" else None,  # the processes' batches then differ in rows
            eval_rows=plain_rows(7, seed=5),
            dataloader_drop_last=True,  # of 20 pairs nothing is dropped, and of the evaluation's 7 nothing may be
            save_strategy="steps",
            save_steps=3,
            # Nobody is told where the others are in making the cache, so it is made by both processes, or by one.
            reference="cache" if kind == "full" else "model",
            kl={"direction": "reverse", "on": "rejected", "target": 0.05} if kind == "lora" else None,
        )
        assert trainer.args.world_size == processes, "accelerate launched what it was asked for"
        evaluated = trainer.evaluate()  # 7 pairs do not divide by 2 processes × 4
        found[kind] = {
            "logs": train_logs(trainer),
            "eval": {name: evaluated[f"eval_{name}"] for name in METRICS},
            "wrapped": type(trainer.model_wrapped).__name__,
        }
        weights = trained_weights(trainer)
        if processes == 2:
            mine = torch.cat([w.flatten() for w in weights.values()])
            both = trainer.accelerator.gather(mine[None])
            assert torch.equal(both[0], both[1]), "the processes hold one model"
        if trainer.is_world_process_zero():
            torch.save(weights, folder / f"{kind}.pt")
            (folder / "found.json").write_text(json.dumps(found))

    found["losses"] = losses_between_logs(folder / "losses", processes)
    found["stopped at"] = stopped_by_one_process(folder / "stopped")
    found["uneven"] = logs_of_an_uneven_epoch(folder / "uneven", processes)
    if trainer.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))


def losses_between_logs(folder: Path, processes: int) -> list[float]:
    """The sum of a checkpoint that lies between two logs, and the mean loss of a run that ends between two."""
    batch = 2 if processes == 2 else 4
    changes = {"max_steps": 4, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    trainer = run("lora", folder, batch=batch, accumulation=2, **changes)
    saved = json.loads((folder / "checkpoint-2/training_loss.json").read_text())["sum"]
    return [saved, trainer.state.log_history[-1]["train_loss"]]


def logs_of_an_uneven_epoch(folder: Path, processes: int) -> list[list[float]]:
    """Of 9 pairs one is left for the second update, and for one of the processes; then comes another epoch."""
    batch = 2 if processes == 2 else 4
    trainer = run("lora", folder, batch=batch, accumulation=2, rows=9, max_steps=3, log_names="both")
    names = ("loss", "grad_norm", "margin", "chosen_logp", "chosen_forward_kl", "num_tokens")
    return [[line[name] for name in names] for line in train_logs(trainer)]


class AskedAlone(TrainerCallback):
    """A signal that reaches the last process alone, in the second update."""

    def __init__(self, stop: GracefulStop) -> None:
        self.stop = stop

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1 and args.process_index == args.world_size - 1:
            self.stop.is_requested = True


def stopped_by_one_process(folder: Path) -> int:
    stop = GracefulStop(lambda _: None)
    changes = {"max_steps": 3, "save_strategy": "steps", "save_steps": 50}
    trainer = run("lora", folder, batch=2, callbacks=[AskedAlone(stop), stop], **changes)
    assert stop.is_requested and (folder / "checkpoint-2/COMPLETE").exists(), "so it is on every process"
    return int(trainer.state.global_step)


@pytest.mark.skipif(device() == "cuda", reason="two processes of a CPU; `make test` runs it on every machine")
@pytest.mark.slow
def test_two_processes_give_the_update_of_one(tmp_path: Path) -> None:
    run_two_processes(__name__, tmp_path / "two")
    (tmp_path / "one").mkdir()
    distributed_run(tmp_path / "one")
    two, one = (json.loads((tmp_path / name / "found.json").read_text()) for name in ("two", "one"))
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["stopped at"] == one["stopped at"] == 2
    assert len(two["uneven"]) == len(one["uneven"]) == 3
    for mine, theirs in zip(two["uneven"], one["uneven"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5), "each pair is learned from once"
    for kind in KINDS:
        assert two[kind]["wrapped"] == "DistributedDataParallel"
        assert len(two[kind]["logs"]) == UPDATES
        for mine, theirs in zip(two[kind]["logs"], one[kind]["logs"], strict=True):
            for name in (*METRICS, "grad_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (kind, name)
        if kind == "lora":  # the controller sees the pairs of all processes, and each process has its λ
            found, expected = ([line["kl_coefficient"] for line in of[kind]["logs"]] for of in (two, one))
            assert found == pytest.approx(expected, rel=1e-3) and max(found) > 2 * min(found)
        for name in METRICS:
            assert two[kind]["eval"][name] == pytest.approx(one[kind]["eval"][name], rel=1e-4, abs=1e-5), (kind, name)
        weights = torch.load(tmp_path / "one" / f"{kind}.pt")
        for name, weight in torch.load(tmp_path / "two" / f"{kind}.pt").items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=2e-6)
        lines = (tmp_path / "two" / kind / "metrics.jsonl").read_text().splitlines()
        steps = [line["step"] for line in map(json.loads, lines) if line["split"] == "train"]
        assert steps == [1, 2, 3, 4, 5], "one process writes"
        checkpoint = tmp_path / "two" / kind / "checkpoint-3"
        assert {"COMPLETE", "rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in checkpoint.iterdir()}
