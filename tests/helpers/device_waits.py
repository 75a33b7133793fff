"""Counts where the host would wait for the device, on a machine that has none: by what tensors are asked.

On a CPU nothing waits, and every tensor is on the host. So what counts is what would wait for a tensor on a GPU, where
our trainers, transformers and accelerate do it between the beginning and the end of an update: operations whose result
the host must know, and copies that are not said to go on by themselves. Left out are the optimizer, whose step counters
torch keeps on the host, and the layout of batches, which is made on the host.
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
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

# Operations whose result, or its size, the host must know; and methods that read the memory of a tensor.
OPERATIONS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "bincount",
}  # fmt: skip
METHODS = ("tolist", "numpy", "cpu")
MAKERS = ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor"))
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
    with _reported(waits, left_out) if torch.cuda.is_available() else _noticed(waits):
        yield waits


@contextmanager
def _reported(waits: Waits, left_out: tuple[str, ...]) -> Iterator[None]:
    """By CUDA: a wait warns; the mode would also raise, but a count is wanted."""
    before = warnings.showwarning

    def show(message: Any, category: Any, file: str, line: int, *more: Any) -> None:
        if "synchroniz" in str(message):
            if not any(part in file for part in left_out):
                waits.note(f"{file}:{line}")
        else:
            before(message, category, file, line, *more)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(warnings, "showwarning", show)
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _noticed(waits: Waits) -> Iterator[None]:
    """By what tensors are asked on a CPU."""
    with pytest.MonkeyPatch.context() as patch, _Operations(waits):
        for name in METHODS:
            patch.setattr(Tensor, name, _reading(getattr(Tensor, name), name, waits))
        for holder, name in MAKERS:
            patch.setattr(holder, name, _making(getattr(holder, name), name, waits))
        patch.setattr(Tensor, "to", _moving(Tensor.to, waits))
        yield


class _Operations(TorchDispatchMode):
    """Sees every operation, whoever calls it."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.waits.is_on and not isinstance(args[0] if args else None, OnHost) and _must_know(func, args, kwargs):
            _note(self.waits, func.overloadpacket.__name__)
        return func(*args, **kwargs)


def _must_know(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):
        chosen_by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return chosen_by_mask and not (name != "index" and args[2].numel() == 1)  # which fills, uncounted
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    return name in OPERATIONS


def _reading(plain: Callable[..., Any], name: str, waits: Waits) -> Callable[..., Any]:
    @wraps(plain)
    def asked(tensor: Tensor, *args: Any, **more: Any) -> Any:
        if isinstance(tensor, OnHost):
            return plain(tensor, *args, **more)
        with _counted_once(waits, name):
            answer = plain(tensor, *args, **more)
        return answer.as_subclass(OnHost) if name == "cpu" and waits.is_on else answer

    return asked


def _making(plain: Callable[..., Any], name: str, waits: Waits) -> Callable[..., Any]:
    """A tensor made of numbers of the host, on a device that is named."""

    @wraps(plain)
    def made(*args: Any, **more: Any) -> Any:
        if more.get("device") is None:
            return plain(*args, **more)
        with _counted_once(waits, name):
            return plain(*args, **more)

    return made


def _moving(plain: Callable[..., Any], waits: Waits) -> Callable[..., Any]:
    """To the host, by its name; or from there to a device, for which trainers have a `torch.device`."""

    @wraps(plain)
    def to(tensor: Tensor, *args: Any, **more: Any) -> Any:
        device = more.get("device", next((a for a in args if isinstance(a, str | torch.device)), None))
        to_host, is_there = device == "cpu" and isinstance(device, str), isinstance(tensor, OnHost)
        if device is None or (to_host and is_there):
            return plain(tensor, *args, **more)
        if not (to_host or is_there) or more.get("non_blocking"):
            moved = plain(tensor, *args, **more)
        else:
            with _counted_once(waits, f"to {device}"):
                moved = plain(tensor, *args, **more)
        return moved.as_subclass(OnHost if to_host and waits.is_on else Tensor) if to_host or is_there else moved

    return to


@contextmanager
def _counted_once(waits: Waits, name: str) -> Iterator[None]:
    """Note one wait, and none of those that a call makes within itself."""
    was_on = waits.is_on
    if was_on:
        _note(waits, name)
    waits.is_on = False
    try:
        yield
    finally:
        waits.is_on = was_on


def _note(waits: Waits, name: str) -> None:
    if (caller := _caller(waits.left_out)) is not None:
        waits.note(f"{name} at {caller}")


def _caller(left_out: tuple[str, ...]) -> str | None:
    """Which line asked; None where what it asked is on the host."""
    frame, first = sys._getframe(2), None
    while frame is not None:
        path = frame.f_code.co_filename
        if any(part in path for part in left_out):
            return None
        if first is None and not any(part in path for part in ("contextlib", "device_waits", "torch/utils/_")):
            first = f"{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return first
