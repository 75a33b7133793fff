"""Counts where the host would wait for the device, on a machine that has none: by the calls that ask tensors something.

On a CPU nothing waits, and every tensor is on the host. So what counts are the calls that would wait for a tensor on a
GPU, where our trainers, transformers and accelerate make them between the beginning and the end of an update. Left out
are the optimizer, whose step counters torch keeps on the host, and the layout of batches, which is made on the host.
On a GPU, `torch.cuda.set_sync_debug_mode` counts what really waited.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

ASKING = (
    "item", "tolist", "cpu", "numpy", "nonzero", "unique", "__bool__", "__int__", "__float__", "__index__", "equal",
)  # fmt: skip
FUNCTIONS = ("nonzero", "unique", "equal", "masked_select", "argwhere")
ON_THE_HOST = ("torch/optim/", "tdpo/batches/", "tdpo/reference_cache/", "accelerate/data_loader", "torch/utils/data")


class OnHost(Tensor):
    """A copy on the host, and all that is computed from it."""


class Waits(TrainerCallback):
    """Counts the waits of each update, from its first micro-batch to what follows its log."""

    def __init__(self, left_out: tuple[str, ...]) -> None:
        self.updates: list[list[str]] = []
        self.is_on, self.left_out = False, left_out

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updates.append([])
        self.is_on = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.is_on = False

    def note(self, what: str) -> None:
        if self.is_on:
            self.updates[-1].append(what)


@contextmanager
def counted_waits(*left_out: str) -> Iterator[Waits]:
    """Inside, the callback that is given notes where each wait came from, but none within the files `left_out`: on a
    CPU none that code of these files brought about, on a GPU none that happened in one of them."""
    waits = Waits((*ON_THE_HOST, *left_out))
    with pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available():
            # A wait warns; the mode would also raise, but a count is wanted.
            before = warnings.showwarning

            def show(message: Any, category: Any, file: str, line: int, *more: Any) -> None:
                if "synchroniz" in str(message):
                    if not any(part in file for part in left_out):
                        waits.note(f"{file}:{line}")
                else:
                    before(message, category, file, line, *more)

            patch.setattr(warnings, "showwarning", show)
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    yield waits
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            return
        for holder, names in ((Tensor, ASKING), (torch, FUNCTIONS)):
            for name in names:
                patch.setattr(holder, name, _noting(getattr(holder, name), name, waits))
        patch.setattr(Tensor, "to", _back_to_the_device(Tensor.to))
        patch.setattr(Tensor, "__getitem__", _noting_masks(Tensor.__getitem__, waits))
        yield waits


def _noting(plain: Callable[..., Any], name: str, waits: Waits) -> Callable[..., Any]:
    @wraps(plain)
    def asked(*args: Any, **more: Any) -> Any:
        if isinstance(args[0], OnHost):
            return plain(*args, **more)
        with _inside(waits, name):
            answer = plain(*args, **more)
        return answer.as_subclass(OnHost) if name == "cpu" and waits.is_on else answer

    return asked


def _back_to_the_device(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def to(tensor: Tensor, *args: Any, **more: Any) -> Any:
        moved = plain(tensor, *args, **more)
        names_device = "device" in more or any(isinstance(a, str | torch.device) for a in args)
        return moved.as_subclass(Tensor) if names_device and isinstance(moved, OnHost) else moved

    return to


def _noting_masks(plain: Callable[..., Any], waits: Waits) -> Callable[..., Any]:
    """Rows by a mask: their number is not known before it was counted."""

    @wraps(plain)
    def asked(tensor: Tensor, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts):
            with _inside(waits, "[mask]"):
                return plain(tensor, index)
        return plain(tensor, index)

    return asked


@contextmanager
def _inside(waits: Waits, name: str) -> Iterator[None]:
    """Note one wait, and none of those that a call makes within itself."""
    was_on = waits.is_on
    if was_on and (caller := _caller(waits.left_out)) is not None:
        waits.note(f"{name} at {caller}")
    waits.is_on = False
    try:
        yield
    finally:
        waits.is_on = was_on


def _caller(left_out: tuple[str, ...]) -> str | None:
    """Which line asked; None where what it asked is on the host."""
    frame, first = sys._getframe(3), None
    while frame is not None:
        path = frame.f_code.co_filename
        if any(part in path for part in left_out):
            return None
        if first is None and "contextlib" not in path and "device_waits" not in path:
            first = f"{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return first
