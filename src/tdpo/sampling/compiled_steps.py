"""Decoding steps that are compiled on a GPU, where a small model is bound by the launches of its kernels.

A step of one token a row has one shape if the cache has its full size from the beginning. torch.compile then records
it as a CUDA graph, which is launched as a whole. Compiling takes about a minute, so a model is compiled for when it has
taken so many steps that the time is likely to come back (`AFTER_STEPS`), and not for a short answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..models import causal_lm_of

# Steps without compiling, after which it begins. A step of SmolLM2-135M bound by launches takes some 25 ms, of which a
# graph leaves a few; so these steps took about as long as compiling does. Nobody has measured it yet.
AFTER_STEPS = 2000

_steps: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()

# How torch compiles a step; tests on a CPU set another backend.
options: dict[str, Any] = {"mode": "reduce-overhead"}


def count_step(model: Any) -> None:
    """Note a step that was not compiled."""
    lm = causal_lm_of(model)
    _steps[lm] = _steps.get(lm, 0) + 1


def pays(model: Any) -> bool:
    """Whether compiling the model's steps is likely to pay: on a GPU, after many steps."""
    lm = causal_lm_of(model)
    return next(lm.parameters()).device.type == "cuda" and _steps.get(lm, 0) >= AFTER_STEPS


def compiled_step(model: Any) -> Callable[..., Any]:
    """The model as a function of one more token a row, compiled; its logits stay what they are in the next step."""
    lm = causal_lm_of(model)
    if lm not in _compiled:
        _compiled[lm] = torch.compile(_called, **options)
    run = _compiled[lm]

    def step(**inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        output = run(model, **inputs)
        output.logits = output.logits.clone()  # a graph writes the next ones into the same memory
        return output

    return step


def _called(model: Any, **inputs: Any) -> Any:
    """The model is an argument: held by what is compiled for it, it would never be let go of."""
    return model(**inputs)


def keep_addresses(cache: Any) -> None:
    """Say that the tensors of a static cache stay where they are until rows are selected again.

    A step writes into them. torch records no CUDA graph of a function that writes into what it is given, unless it is
    marked so; transformers marks what it allocates, and `reorder_cache` puts other tensors in its place.
    """
    for layer in cache.layers:
        for states in (layer.keys, layer.values):
            torch._dynamo.mark_static_address(states)


def rows_to_keep(live: list[int], rows: int) -> list[int]:
    """Which of so many rows a compiled batch keeps: the live ones, and finished ones up to a power of two.

    Each number of rows is a graph of its own, so there are few. All are kept until half of them may go.
    """
    size = 1 << max(len(live) - 1, 0).bit_length()
    if 2 * size > rows:
        return list(range(rows))
    finished = [slot for slot in range(rows) if slot not in set(live)]
    return sorted([*live, *finished[: size - len(live)]])
