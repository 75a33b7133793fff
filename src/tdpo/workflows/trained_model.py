"""What a training leaves behind: the model in its run directory, and the numbers that its card shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..records.folders import staged_folder
from ..records.full_disk import telling_of_a_full_disk
from ..records.names import MODEL_FOLDER
from ..runs import RunDirectory
from ..runs.contents import STAGED_MODEL
from ..training.saving import weights_bytes


def save_trained(trainer: Any, run: RunDirectory, card: str) -> Path:
    """Save the model whole beside its place in the run directory and move it there, with its card; returns its place.

    Every process calls this: each takes part where the model is gathered from all of them.
    """
    place, staging = run.path / MODEL_FOLDER, run.path / STAGED_MODEL
    if not trainer.args.should_save:
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        trainer.accelerator.wait_for_everyone()
        return place
    with staged_folder(place, staging), telling_of_a_full_disk(place, weights_bytes(trainer.model)):
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(staging))
        (staging / "training_args.bin").unlink(missing_ok=True)
        (staging / "README.md").write_text(card, encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return place


def versions_of(run: RunDirectory) -> dict[str, Any]:
    """The versions that the run's environment.json names."""
    versions: dict[str, Any] = (run.read_json("environment.json") or {}).get("versions", {})
    return versions


def last_log(trainer: Any) -> dict[str, float]:
    """The numbers of the last training log; {} where nothing was logged."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return lines[-1] if lines else {}


def without_prefix(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of an evaluation without "eval_"."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}
