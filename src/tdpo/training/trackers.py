"""Trackers (wandb, trackio, MLflow, TensorBoard …) that see a run to its end, its last evaluation included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK


@contextmanager
def open_trackers(trainer: Trainer) -> Iterator[None]:
    """While it lasts, trackers stay open after `trainer.train`: some would begin another run for what is logged then.

    At its end they are told that the training has ended, as `train` would have told them.
    """
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    handler = trainer.callback_handler
    trackers: list[Any] = [callback for callback in handler.callbacks if isinstance(callback, kinds)]
    waiting = [_EndsLater(tracker) for tracker in trackers]
    for tracker, until in zip(trackers, waiting, strict=True):
        tracker.on_train_end = until
    try:
        yield
    finally:
        for tracker in trackers:
            del tracker.on_train_end
        for until in waiting:
            until.end()


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
