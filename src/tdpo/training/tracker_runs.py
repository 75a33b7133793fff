"""The run that a tracker writes to: how it is named, told apart from others, continued and ended, tracker by tracker.

transformers' callbacks begin the runs. What they offer for continuing one differs, and some of it is attributes of
theirs that are not public; `make test-trackers` checks that they are what is expected here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from transformers import Trainer

from .callbacks import Say

# What transformers' callback for trackio leaves out, as the one for wandb does, which puts it into the run's summary.
KEPT_BACK = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


class TrackerRun:
    """The run of one tracker. Of itself it does nothing.

    Attributes:
        tracker: transformers' callback.
        trainer: which the callback belongs to.
    """

    def __init__(self, tracker: Any, trainer: Trainer) -> None:
        self.tracker, self.trainer = tracker, trainer

    def prepare(self, known: str | None, resumed_at: int | None, say: Say) -> None:
        """Before training: settle which run it is. `known` is the one to go on with, `resumed_at` the update."""

    def identity(self, folder: Path) -> str | None:
        """Once training has begun: by what the tracker knows the run. `folder` is the run directory."""
        return None

    def log_summary(self, numbers: Mapping[str, Any], step: int) -> None:
        """Log what is said of the whole run."""

    def end(self, has_failed: bool) -> None:
        """End what the callback leaves open."""


class TensorBoardRun(TrackerRun):
    """A folder with files of events, named by the time at which it was begun."""

    def prepare(self, known: str | None, resumed_at: int | None, say: Say) -> None:
        if (
            known is None or resumed_at is None or self.tracker.logging_dir is not None
        ):  # TENSORBOARD_LOGGING_DIR is set
            return
        self.tracker.logging_dir = str(Path(str(self.trainer.args.output_dir)) / known)
        if self.trainer.is_world_process_zero():
            # What a killed run logged after its checkpoint comes again; TensorBoard forgets the first time.
            self.tracker.tb_writer = self.tracker._SummaryWriter(
                log_dir=self.tracker.logging_dir, purge_step=resumed_at + 1
            )

    def identity(self, folder: Path) -> str | None:
        place = Path(self.tracker.logging_dir)
        return place.relative_to(folder).as_posix() if place.is_relative_to(folder) else None


class WandbRun(TrackerRun):
    """Known by an id. The callback takes a run that is open, and never ends one: that is left to the process's end."""

    def prepare(self, known: str | None, resumed_at: int | None, say: Say) -> None:
        wandb = self.tracker._wandb
        self.is_ours = wandb.run is None
        continues = known is not None and self.is_ours and "WANDB_RUN_ID" not in os.environ
        if continues and self.trainer.is_world_process_zero():
            project = os.environ.get("WANDB_PROJECT", "huggingface")  # as the callback
            wandb.init(project=project, name=self.trainer.args.run_name, id=known, resume="allow")

    def identity(self, folder: Path) -> str | None:
        run = self.tracker._wandb.run
        return None if run is None else str(run.id)

    def end(self, has_failed: bool) -> None:
        if self.is_ours and self.tracker._wandb.run is not None:
            self.tracker._wandb.finish(exit_code=int(has_failed))


class MLflowRun(TrackerRun):
    """Known by an id, which the callback takes from a variable of the environment."""

    VARIABLE = "MLFLOW_RUN_ID"
    has_set = False

    def prepare(self, known: str | None, resumed_at: int | None, say: Say) -> None:
        if known is None or self.VARIABLE in os.environ:
            return
        mlflow = self.tracker._ml_flow
        try:
            mlflow.MlflowClient().get_run(known)
        except mlflow.exceptions.MlflowException:
            say(
                f"MLflow at {mlflow.get_tracking_uri()} does not know {known}, the run of this directory: it begins "
                "another one. MLFLOW_TRACKING_URI says where MLflow keeps its runs."
            )
            return
        os.environ[self.VARIABLE] = known
        self.has_set = True

    def identity(self, folder: Path) -> str | None:
        run = self.tracker._ml_flow.active_run()
        return None if run is None else str(run.info.run_id)

    def end(self, has_failed: bool) -> None:
        if has_failed and self.tracker._auto_end_run and self.tracker._ml_flow.active_run() is not None:
            self.tracker._ml_flow.end_run("FAILED")
        if self.has_set:
            os.environ.pop(self.VARIABLE, None)  # MLflow removes it when it has begun


class TrackioRun(TrackerRun):
    """Known by its name. The callback goes on with any run of that name, so a new run needs one that is free."""

    def prepare(self, known: str | None, resumed_at: int | None, say: Say) -> None:
        args = self.trainer.args
        if known is not None:
            args.run_name = known
        elif resumed_at is None and args.run_name is not None:
            name = _free(args.run_name, self._names(args.project))
            if name != args.run_name:
                say(f"trackio has a run {args.run_name} already; this one is {name}.")
            args.run_name = name

    def _names(self, project: str) -> set[str]:
        """Names of the runs in the database of this machine."""
        try:
            return {run.name for run in self.tracker._trackio.Api().runs(project)}
        except ValueError:  # there is no such project yet
            return set()

    def identity(self, folder: Path) -> str | None:
        name = self.trainer.args.run_name
        return None if name is None else str(name)

    def log_summary(self, numbers: Mapping[str, Any], step: int) -> None:
        kept_back = {f"train/{name}": numbers[name] for name in KEPT_BACK if name in numbers}
        self.tracker._trackio.log({**kept_back, "train/global_step": step})


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(other for n in count(2) if (other := f"{name}-{n}") not in taken)


KINDS: dict[str, type[TrackerRun]] = {
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
    "mlflow": MLflowRun,
    "trackio": TrackioRun,
}
