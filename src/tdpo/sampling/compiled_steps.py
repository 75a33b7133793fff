"""Decoding steps that are compiled on a GPU: fewer kernels than the model's own, and all launched as a whole.

A step of one token a row has one shape if the cache has its full size from the beginning. torch.compile then records
it as a CUDA graph. The code is compiled once for all shapes; a graph is recorded for each shape and each place in
memory, so shapes are few, and a call's batches use one memory (`reused_cache.py`). Compiling takes about a minute, so a
model is compiled for when it takes so many steps that the time is likely to come back (`AFTER_STEPS`). Until then the
model's own kernels are recorded (`recorded_steps.py`), which costs next to nothing and gives most of what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..models import causal_lm_of

# Steps for which compiling pays, by how they are taken without it. A step of SmolLM2-135M bound by launches takes some
# 25 ms, of which a graph leaves a few; of these, compiling may save a millisecond or two. So these steps save about as
# long as compiling takes. Nobody has measured it yet.
AFTER_STEPS = {"plain": 2000, "recorded": 30_000}
CAPACITY_STEP = 128  # tokens, of which a static cache's capacity is a multiple

_steps: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_compiled: WeakKeyDictionary[Any, Callable[..., Any]] = WeakKeyDictionary()

# How torch compiles a step; tests on a CPU set another backend. Sizes are variables at once: otherwise the first shape,
# another number of rows and another capacity would each be compiled for.
options: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": True}


def count_step(model: Any) -> None:
    """Note a step that was not compiled."""
    lm = causal_lm_of(model)
    _steps[lm] = _steps.get(lm, 0) + 1


def steps_taken(model: Any) -> int:
    """Steps that were not compiled, in this process."""
    return _steps.get(causal_lm_of(model), 0)


def is_on_one_card(model: Any) -> bool:
    """Whether a CUDA graph may hold the model's steps.

    Not under autocast: its casts of the weights would go into every step's graph. Nobody has proven such steps.
    """
    devices = {parameter.device for parameter in causal_lm_of(model).parameters()}
    return [device.type for device in devices] == ["cuda"] and not torch.is_autocast_enabled("cuda")


def pays(model: Any, to_come: int, instead_of: str = "plain") -> bool:
    """Whether compiling the model's steps is likely to pay: on a GPU, for many steps, taken before or about to come.

    `instead_of` says how they are taken otherwise.
    """
    return is_on_one_card(model) and steps_taken(model) + to_come >= AFTER_STEPS[instead_of]


def compiled_step(model: Any) -> Callable[..., Any]:
    """The model as a function of one more token a row, compiled; its logits stay what they are in the next step."""
    lm = causal_lm_of(model)
    if lm not in _compiled:
        _compiled[lm] = torch.compile(_called, **options)
    run = _compiled[lm]

    def step(**inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        # Only sizes vary: a number such as a norm's ε, taken for a variable, lies on the CPU and forbids a CUDA graph.
        with torch._dynamo.config.patch(specialize_float=True):
            output = run(model, **inputs)
        output.logits = output.logits.clone()  # a graph writes the next ones into the same memory
        return output

    return step


def _called(model: Any, **inputs: Any) -> Any:
    """The model is an argument: held by what is compiled for it, it would never be let go of."""
    return model(**inputs)


def rows_to_keep(live: list[int], rows: int) -> list[int]:
    """Which of so many rows a batch on a static cache keeps: the live ones, and finished ones up to a power of two.

    Each number of rows is a graph of its own, so there are few. All are kept until half of them may go. One row alone
    would be compiled for anew.
    """
    size = max(2, 1 << (len(live) - 1).bit_length())
    if 2 * size > rows:
        return list(range(rows))
    finished = [slot for slot in range(rows) if slot not in set(live)]
    return sorted([*live, *finished[: size - len(live)]])


def capacity_for(tokens: int, longest: int) -> int:
    """Tokens a row of a batch on a static cache that needs `tokens`; the longest row of the call has `longest`."""
    return min(-(-tokens // CAPACITY_STEP) * CAPACITY_STEP, longest)
