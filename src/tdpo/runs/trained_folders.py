"""What a folder holds that somebody wants to evaluate: a run, a checkpoint, an adapter, or a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..records.names import EVALUATION_FOLDER, RECIPE_FILE, STATUS_FILE, TRAINER_FILE
from ..records.run_places import (
    is_model_folder,
    is_recipe_run,
    is_trainer_run,
    meant_by,
    newest_checkpoint,
    results_folder,
    run_above,
    saved_model,
    trainer_record,
)
from .checkpoints import is_checkpoint
from .directory import RunDirectory, RunError


@dataclass(frozen=True)
class TrainedFolder:
    """A trained model and what is known of it.

    Attributes:
        model: the folder of the weights.
        results: where an evaluation is written.
        recipe_run: the recipe's run that it belongs to; None where a trainer in Python, or another library, made it.
        record: trainer.json of the trainer that made it; {} where there is none.
        remarks: sentences for the user on what was chosen.
    """

    model: Path
    results: RunDirectory
    recipe_run: RunDirectory | None = None
    record: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def results_name(self) -> str:
        """What tables and pages call it: the name of the run, or of the checkpoint or model that is judged alone."""
        folder = self.results.path
        return (folder.parent if folder.name == EVALUATION_FOLDER else folder).resolve().name


def trained_folder(path: str | Path) -> TrainedFolder:
    """What the folder `path` holds.

    Raises:
        RunError: it is no folder, or it holds no model; the message says what was expected.
    """
    path = Path(path)
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "it does not exist"
        raise RunError(
            f"{path} is no run directory: {reason}; expected one, a trainer's output_dir, a checkpoint, or the folder "
            "of an adapter or a model"
        )
    place = meant_by(path)
    remarks = [] if place == path or not is_checkpoint(place.name) else [f"The newest checkpoint, {place}, is taken."]
    if is_recipe_run(place):
        run = RunDirectory.open(place)
        return TrainedFolder(run.model_path, run, run, remarks=_of_unfinished(run))
    if is_trainer_run(place):
        return _of_trainer_run(place)
    if not is_model_folder(place):
        raise RunError(_what_it_holds(path))
    above, results = run_above(place), RunDirectory(results_folder(place))
    if above is not None and is_recipe_run(above):
        return TrainedFolder(place, results, RunDirectory(above), remarks=remarks)
    record = trainer_record(place) or ({} if above is None else trainer_record(above))
    return TrainedFolder(place, results, record=record, remarks=remarks)


def _of_unfinished(run: RunDirectory) -> list[str]:
    """A sentence where a run goes on, or was stopped, after it had saved the model that is there."""
    if run.state() == "finished":
        return []
    return [f"{run.path} {run.in_words()}: the model in it was saved before that."]


def _what_it_holds(path: Path) -> str:
    runs = sorted(str(p) for p in path.iterdir() if p.is_dir() and (is_recipe_run(p) or is_trainer_run(p)))
    names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    return (
        f"{path} is no run directory and holds no model: expected {RECIPE_FILE} with {STATUS_FILE}, {TRAINER_FILE}, "
        f"config.json or adapter_config.json, found {names}" + (f"; runs inside it: {', '.join(runs)}" if runs else "")
    )


def _of_trainer_run(path: Path) -> TrainedFolder:
    """Its model is the one that `save_model` wrote last, else the newest checkpoint."""
    record, model = trainer_record(path), saved_model(path)
    if model is not None:
        run = RunDirectory(path)
        return TrainedFolder(model, run, record=record, remarks=_of_unfinished(run))
    checkpoint = newest_checkpoint(path)
    if checkpoint is None:
        saved = record.get("model")
        lost = f" (it was saved in {saved}, which is not there)" if saved else ""
        raise RunError(
            f"{path} has no trained model{lost}: call trainer.save_model() after trainer.train(), or give the folder "
            "that the model was saved in"
        )
    remark = f"No saved model in {path}: its newest checkpoint, {checkpoint.name}, is taken."
    return TrainedFolder(checkpoint, RunDirectory(path), record=record, remarks=[remark])
