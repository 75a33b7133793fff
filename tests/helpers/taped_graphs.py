"""A stand-in for CUDA graphs on a CPU: the operations of a step on the very tensors that they were recorded with.

As on a card, a replay sees no Python and no other tensors, reads and writes where the recording did, and what asks for
a value cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdpo.sampling import compiled_steps, recorded_steps
from tdpo.sampling.recorded_steps import Graph

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class WaitsRefused(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise RuntimeError(f"{func} waits for the device")
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


class Tape(WaitsRefused):
    """Records the operations of a `with` block, whose effects on older tensors are then undone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((value, value.clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(step: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Tensor, Graph]:
    """In place of `recorded_steps.record`."""
    with WaitsRefused():
        logits = step()
    with Tape() as tape:
        recorded = step()
    return logits, Graph(tape.replay, recorded, pool or object())


@pytest.fixture
def recorded_here(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Steps are recorded on the GPU, and without one by the stand-in; the list gets the shape of every replay."""
    monkeypatch.setattr(recorded_steps, "pays", lambda *_: True)
    monkeypatch.setattr(compiled_steps, "pays", lambda *_: False)
    monkeypatch.setattr(recorded_steps, "OF_A_SHAPE", 2)
    if not torch.cuda.is_available():
        monkeypatch.setattr(recorded_steps, "record", taped)
    replays: list[torch.Size] = []
    replay = recorded_steps.Recording.__call__

    def noted(recording: recorded_steps.Recording, inputs: Any) -> Tensor:
        replays.append(inputs["attention_mask"].shape)
        return replay(recording, inputs)

    monkeypatch.setattr(recorded_steps.Recording, "__call__", noted)
    return replays
