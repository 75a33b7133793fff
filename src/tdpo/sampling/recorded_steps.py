"""Decoding steps that are recorded as CUDA graphs and replayed: a small model's step is bound by launching its kernels.

A step of one token a row over a cache of full size (`reused_cache.py`) runs the same kernels on the same addresses
every time. Recorded once, they are launched as a whole, without Python between them. Nothing is compiled, so recording
costs about as much as a few steps, where compiling (`compiled_steps.py`) costs as much as thousands. What is recorded
belongs to its addresses and lives as long as the call of the sampler.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..models import causal_lm_of
from .compiled_steps import is_on_one_card, steps_taken

logger = logging.getLogger(__name__)

# Steps from which on a model's are recorded. Asking it whether they are right takes some fifteen steps, once; these
# numbers are guesses, since nobody has measured them on a card.
FROM_STEPS = 64
OF_A_SHAPE = 8  # steps of a shape that are taken as they are written, before it is recorded: it may not come again


def pays(model: Any, at_most: int) -> bool:
    """Whether recording is likely to pay: on one GPU, without autocast, for steps that were or may be taken.

    `at_most` is the largest number of steps that may be about to come; recording costs so little that it is not
    estimated more closely.
    """
    return is_on_one_card(model) and steps_taken(model) + at_most >= FROM_STEPS


class RecordedSteps:
    """The model as a function of one more token a row, on one static cache; returns an object with its logits.

    With `is_probe` a shape is recorded at its second step, and a step that cannot be recorded raises RuntimeError.
    Otherwise steps are then taken as they are written, which the log says once.
    """

    def __init__(self, model: Any, is_probe: bool = False) -> None:
        self.model, self.is_probe = model, is_probe
        self.wait = 1 if is_probe else OF_A_SHAPE
        self.taken: Counter[torch.Size] = Counter()
        self.recordings: dict[torch.Size, Recording] = {}
        self.addresses: list[int] = []
        self.can_record = True

    def __call__(self, **inputs: Any) -> Any:
        kv_cache, shape = inputs["past_key_values"], inputs["attention_mask"].shape
        if (addresses := kv_cache.addresses()) != self.addresses:
            # A larger batch took other memory. What was recorded would write into memory that is somebody else's.
            self.recordings.clear()
            self.addresses = addresses
        if shape in self.recordings:
            return SimpleNamespace(logits=self.recordings[shape](inputs))
        self.taken[shape] += 1
        if not self.can_record or self.taken[shape] <= self.wait:
            return self.model(**inputs)
        return SimpleNamespace(logits=self._recorded(kv_cache, shape, inputs))

    def _recorded(self, kv_cache: Any, shape: torch.Size, inputs: Mapping[str, Any]) -> Tensor:
        """Take this step and record its shape; the logits `[R, 1, V]`."""
        held = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}

        def step() -> Tensor:
            logits: Tensor = self.model(**held).logits
            return logits

        pool = next((recording.graph.pool for recording in self.recordings.values()), None)
        lengths = kv_cache.lengths()
        try:
            logits, graph = record(step, self.model.device, pool)
        except RuntimeError as error:
            if self.is_probe:
                raise
            self._give_up(error)
            kv_cache.set_lengths(lengths)  # some layers may have taken the step
            return step()
        self.recordings[shape] = Recording(held, graph)
        return logits

    def _give_up(self, error: RuntimeError) -> None:
        self.can_record = False
        name = type(causal_lm_of(self.model)).__name__
        logger.info("The decoding steps of %s are not recorded as CUDA graphs, which is slower: %s", name, error)


@dataclass(frozen=True)
class Graph:
    """What was recorded: `replay` runs it on the tensors that it was recorded with, `logits` is where it writes.

    Another graph may share its `pool` of memory, as they never run at once and nothing but the logits is read from it.
    """

    replay: Callable[[], None]
    logits: Tensor
    pool: Any


@dataclass(frozen=True)
class Recording:
    """A graph with the inputs that it reads."""

    held: Mapping[str, Any]
    graph: Graph

    def __call__(self, inputs: Mapping[str, Any]) -> Tensor:
        for name, value in self.held.items():
            if isinstance(value, Tensor):
                value.copy_(inputs[name])
        self.graph.replay()
        return self.graph.logits.clone()  # the next step writes into the same memory


def record(step: Callable[[], Tensor], device: torch.device, pool: Any) -> tuple[Tensor, Graph]:
    """Take the step once and record it without taking it again; returns its logits, and the graph.

    Raises:
        RuntimeError: the step waits for the GPU somewhere, or does something else that no graph can hold.
    """
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        # Of its own, since `torch.cuda.graph` does not return to the current stream after a failure.
        with torch.cuda.stream(stream):
            # On the stream of the recording, so that what is made at the first use of a stream is there. A wait is
            # refused here already: before torch 2.12 a recording that failed half-way left the allocator in a state of
            # its own.
            with _waits_refused():
                logits = step()
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that pins a loader's batches, may go on.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                recorded = step()
    finally:
        current.wait_stream(stream)
    return logits, Graph(graph.replay, recorded, graph.pool())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps memory for every stream that it has worked on."""
    return torch.cuda.Stream(device)


@contextmanager
def _waits_refused() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
