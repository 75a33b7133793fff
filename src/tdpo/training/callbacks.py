"""How a run is followed and stopped: status.json and a progress bar, Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from ..runs import RunDirectory

Progress = Callable[[int, int, str], None]  # updates done, updates in all, a note
Say = Callable[[str], None]


class DrawingCallback(TrainerCallback):
    """A callback that is told, while a trainer draws responses, how far it is."""

    def on_drawing(self, state: Any, drawn: int, total: int) -> None:
        """`drawn` of the `total` responses that this process asks for now are complete."""


class RunStatus(DrawingCallback):
    """Keeps status.json and the caller's progress bar at the current update; `note` makes a text of a training log."""

    def __init__(
        self, run: RunDirectory, progress: Progress | None, note: Callable[[dict[str, Any]], str | None]
    ) -> None:
        self.run, self.progress, self.make_note = run, progress, note
        self.note, self.awaits_log = "", False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.awaits_log = control.should_log  # this update's own log follows at once, and is shown with it
        if not self.awaits_log:
            self._show(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        note = self.make_note(logs or {})
        if note is not None:
            self.note = note
        if note is not None or self.awaits_log:
            self._show(state)
        self.awaits_log = False

    def on_drawing(self, state: Any, drawn: int, total: int) -> None:
        if self.progress is None:
            return
        drawing = [f"{drawn}/{total} responses drawn"] if drawn < total else []
        self.progress(state.global_step, state.max_steps, " · ".join([*drawing, *filter(None, [self.note])]))

    def _show(self, state: Any) -> None:
        self.run.set_status("running", step=state.global_step, max_steps=state.max_steps)
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, self.note)


class GracefulStop(TrainerCallback):
    """The first Ctrl-C or SIGTERM asks for a checkpoint after the update under way; a second one stops at once."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.is_requested = False
        self._signal: int | None = None
        self._handlers = _Handlers(self._ask)

    def listening(self) -> _Handlers:
        """A context in which the signals come here."""
        return self._handlers

    def raise_if_asked(self) -> None:
        """What whoever listened before would have made of the signal, or KeyboardInterrupt."""
        if not self.is_requested:
            return
        before = self._handlers.before.get(self._signal) if self._signal is not None else None
        if callable(before):
            before(self._signal, None)
        raise KeyboardInterrupt

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum
        if self.is_requested:
            self.raise_if_asked()
        self.is_requested = True
        self.say("Stopping after this update, with a checkpoint. Ctrl-C again stops at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.is_requested = _of_any_process(self.is_requested, args)
        if self.is_requested:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True


def _of_any_process(is_requested: bool, args: Any) -> bool:
    """Whether a signal has reached any process. All must stop after the same update: it may reach one alone, or the
    others a moment later, when these wait already for what the one will not send."""
    if args.world_size == 1:
        return is_requested
    requests = torch.tensor(float(is_requested), device=args.device)
    torch.distributed.all_reduce(requests)
    return bool(requests.item())


class _Handlers:
    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.handler = handler
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[signum] = signal.signal(signum, self.handler)
            except ValueError:  # only the main thread may set handlers; elsewhere signals stay as they are
                return

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
