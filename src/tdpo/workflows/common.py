"""What a run does before and after training, whatever the method: the policy loaded, batches split, the model saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config import Model
from ..models import LoraSettings, add_lora, has_no_units_for, load_causal_lm
from ..records.folders import staged_folder
from ..records.names import MODEL_FOLDER
from ..runs import RunDirectory
from ..runs.contents import STAGED_MODEL
from ..training.callbacks import Say
from ..training.saving import telling_of_a_full_disk


def load_policy(model: Model) -> Any:
    """The policy that a recipe's model section names, with a fresh adapter where it asks for one."""
    policy = load_causal_lm(
        model.name, dtype=model.dtype, trust_remote_code=model.trust_remote_code, trainable=model.lora is None
    )
    if model.lora is None:
        return policy
    return add_lora(policy, LoraSettings(model.lora.rank, model.lora.alpha, model.lora.dropout, model.lora.targets))


def warn_of_slow_dtype(dtype: str, say: Say) -> None:
    if has_no_units_for(dtype):
        say(f"This CPU has no units for {dtype}: training takes several times as long as with model.dtype=float32.")


def split_batch(batch_size: int, micro_batch_size: int | None, key: str, micro_key: str, rows: str) -> tuple[int, int]:
    """Rows per forward and process, and the number of such forwards per update.

    Raises:
        ValueError: they cannot be divided over the processes; the keys and what rows are called are in the message.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise ValueError(
            f"{key} {batch_size} counts the {rows} of all processes and cannot be divided over {processes}"
        )
    own = batch_size // processes
    micro = min(micro_batch_size or own, own)
    if own % micro:
        raise ValueError(
            f"{micro_key} {micro} does not divide the {own} {rows} that each of {processes} processes gets"
        )
    return micro, own // micro


def save_trained(trainer: Any, run: RunDirectory, card: str) -> Path:
    """Save the model whole beside its place in the run directory and move it there, with its card."""
    place, staging = run.path / MODEL_FOLDER, run.path / STAGED_MODEL
    if not trainer.args.should_save:  # takes part where the model is gathered from all processes
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        trainer.accelerator.wait_for_everyone()
        return place
    with telling_of_a_full_disk(place), staged_folder(place, staging):
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        (staging / "training_args.bin").unlink(missing_ok=True)
        (staging / "README.md").write_text(card, encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return place


def versions_of(run: RunDirectory) -> dict[str, Any]:
    """The versions that the run's environment.json names."""
    found: dict[str, Any] = (run.read_json("environment.json") or {}).get("versions", {})
    return found


def last_log(trainer: Any) -> dict[str, float]:
    """The numbers of the last training log."""
    logged = [line for line in trainer.state.log_history if "loss" in line]
    return logged[-1] if logged else {}


def without_prefix(metrics: dict[str, float] | None) -> dict[str, float] | None:
    """Evaluation metrics without "eval_"."""
    return None if metrics is None else {k.removeprefix("eval_"): v for k, v in metrics.items()}
