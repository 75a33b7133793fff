"""Trackers (wandb, trackio, MLflow, TensorBoard …) that see a run directory as one run, from its begin to its end.

transformers' callbacks begin a run for every call of `train`, and end it with that call. Here a tracker stays open for
the evaluation after it, and a resumption goes on with the tracker's run, which the run directory remembers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..records.json_files import read_json
from ..records.names import TRACKERS_FILE
from ..runs import RunDirectory
from .callbacks import Say
from .tracker_runs import KINDS, TrackerRun


@contextmanager
def open_trackers(trainer: Trainer, run: RunDirectory, *, resumed_at: int | None, say: Say) -> Iterator[None]:
    """While it lasts, trackers stay open after `trainer.train`, and write to the runs that the directory remembers.

    At its end they are told that the training has ended, as `train` would have told them.

    Args:
        trainer: which has not begun to train.
        run: its directory.
        resumed_at: the update from which it goes on; None where it begins.
        say: told where a tracker's run has another name than the directory, or cannot be continued.
    """
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    handler = trainer.callback_handler
    trackers: list[Any] = [callback for callback in handler.callbacks if isinstance(callback, kinds)]
    runs = {name: KINDS[name](tracker, trainer) for tracker in trackers if (name := _name(tracker)) in KINDS}
    file = run.path / TRACKERS_FILE
    known = read_json(file) if resumed_at is not None and file.is_file() else {}
    for name, tracked in runs.items():
        tracked.prepare(known.get(name), resumed_at, say)
    notes = _Notes(run, runs, known)
    trainer.add_callback(notes)
    waiting = [_EndsLater(tracker) for tracker in trackers]
    for tracker, until in zip(trackers, waiting, strict=True):
        tracker.on_train_end = until
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        for tracker in trackers:
            del tracker.on_train_end
        for until in waiting:
            until.end()
        for tracked in runs.values():
            tracked.end(has_failed)
        trainer.remove_callback(notes)


def _name(tracker: Any) -> str | None:
    """What `report_to` calls a tracker."""
    return next((name for name, kind in INTEGRATION_TO_CALLBACK.items() if type(tracker) is kind), None)


class _Notes(TrainerCallback):
    """Remembers which runs the trackers have begun, and hands them the numbers that transformers keeps back."""

    def __init__(self, run: RunDirectory, runs: Mapping[str, TrackerRun], known: Mapping[str, str]) -> None:
        self.run, self.runs, self.known = run, runs, known

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self.runs:
            begun = {name: tracked.identity(self.run.path) for name, tracked in self.runs.items()}
            self.run.write_json(TRACKERS_FILE, {**self.known, **{name: run for name, run in begun.items() if run}})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" in logs:
            for tracked in self.runs.values():
                tracked.log_summary(logs, state.global_step)


class _EndsLater:
    """A tracker's `on_train_end`, which keeps what it was called with last until `end` calls it."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *arguments: Any, **more: Any) -> None:
        self.call = arguments, more

    def end(self) -> None:
        if self.call is not None:
            arguments, more = self.call
            self.tracker.on_train_end(*arguments, **more)
