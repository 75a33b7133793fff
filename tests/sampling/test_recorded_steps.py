"""Recorded decoding steps: replayed on what they were recorded with, dropped with it, and left where a step waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.devices import device
from helpers.taped_graphs import recorded_here, taped  # noqa: F401
from tdpo.models.devices import placed
from tdpo.sampling import decoding_ways, recorded_steps
from tdpo.sampling.decoding import DecodingBatch, Way
from tdpo.sampling.recorded_steps import RecordedSteps, record
from tdpo.sampling.reused_cache import ReusedCache
from tdpo.sampling.sampler import SamplingSettings, sample

PLAIN = Way("cache", pads=True, shares_prefix=True)
RECORDED = Way("cache", pads=True, shares_prefix=True, steps="recorded")
PROMPTS = [[5, 9, 4], [5, 9, 8, 3, 11]]
SAID = "are not recorded as CUDA graphs, which is slower"
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu")


@torch.no_grad()
def decoded(batch: DecodingBatch, rows: int, steps: int) -> list[Tensor]:
    """Logits of made-up tokens, so many steps of so many rows, of which half leave after the first half of them."""
    batch.prefill(PROMPTS)
    batch.select([row % 2 for row in range(rows)])
    logits = []
    for step in range(steps):
        if step == steps // 2:
            batch.select(list(range(0, rows, 2)))
            rows = len(batch.mask)
        tokens = torch.arange(rows, device=batch.mask.device)[:, None] + step + 1
        logits.append(batch.feed(tokens, torch.ones_like(tokens)))
    return logits


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_graph_serves_the_batches_that_lie_where_it_was_recorded(
    recorded_here: list[torch.Size],  # noqa: F811
    tiny_model: Callable[..., Any],
) -> None:
    """Five steps of all rows and five of half: the second batch replays all. The third is larger and takes other
    memory: what was recorded would read and write the old one, so that it is recorded anew, for the fourth as well."""
    model = placed(tiny_model("llama"), "auto").eval()
    cache, recorded = ReusedCache(model.config), RecordedSteps(model)
    replayed, graphs = [], []
    for rows in (4, 4, 8, 4):
        recorded_here.clear()
        ours = decoded(DecodingBatch(model, 20, RECORDED, cache, recorded), rows, 10)
        assert_near(ours, decoded(DecodingBatch(model, 20, PLAIN), rows, 10))
        replayed.append(len(recorded_here))
        graphs.append(sorted(shape[0] for shape in recorded.recordings))
    as_they_are, recording = recorded_steps.OF_A_SHAPE, 1
    first, known, new = 5 - as_they_are - recording, 5, 5 - recording
    assert replayed == [2 * first, 2 * known, first + new, known + new]
    assert graphs == [[2, 4], [2, 4], [4, 8], [2, 4, 8]]


class Waits(torch.nn.Module):
    """A layer's MLP that reads a value from the device from its `at`-th call on."""

    def __init__(self, mlp: torch.nn.Module, at: int) -> None:
        super().__init__()
        self.mlp, self.at, self.calls = mlp, at, 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        if self.calls >= self.at:
            hidden.sum().item()
        return self.mlp(hidden)


def test_steps_that_wait_go_on_as_they_are_written(
    recorded_here: list[torch.Size],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    tiny_model: Callable[..., Any],
    tokenizer: Any,
) -> None:
    """The wait is in the second layer: the first has taken the step by then, and must not take it twice."""
    model = placed(tiny_model("llama"), "auto")
    settings = SamplingSettings(num_samples=2, max_new_tokens=8, seed=3, batch_size=4)
    decoding_ways._static_of_models[model] = {("sdpa", torch.float32, "recorded"): True}  # as a probe had found
    layer = model.model.layers[1]
    layer.mlp = Waits(layer.mlp, 0)
    with caplog.at_level(logging.INFO, logger="tdpo"):
        ours = sample(model, tokenizer, ["the cat", "the dog sat", "a day"], settings)
    assert not recorded_here and [SAID in record.getMessage() for record in caplog.records].count(True) == 1
    layer.mlp = layer.mlp.mlp
    plain = pytest.MonkeyPatch()
    plain.setattr(recorded_steps, "pays", lambda *_: False)
    theirs = sample(model, tokenizer, ["the cat", "the dog sat", "a day"], settings)
    plain.undo()
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


def test_a_model_whose_steps_wait_is_found_by_its_probe(
    recorded_here: list[torch.Size],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    tiny_model: Callable[..., Any],
) -> None:
    model = placed(tiny_model("llama"), "auto").eval()
    layer = model.model.layers[1]
    layer.mlp = Waits(layer.mlp, 0)
    with caplog.at_level(logging.INFO, logger="tdpo"):
        assert decoding_ways.with_static_steps(model, PLAIN, 0, 0) == PLAIN
    assert "recorded steps are not used" in caplog.text
    if torch.cuda.is_available():
        assert torch.cuda.get_sync_debug_mode() == 0
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_graph_that_replays_wrongly_is_not_used(
    recorded_here: list[torch.Size],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., Any],
) -> None:
    """Such as one that forgets to copy a step's tokens to where the graph reads them."""
    replay = recorded_steps.Recording.__call__
    for spoils in (False, True):
        model = placed(tiny_model("llama", dtype=torch.bfloat16), "auto").eval()
        if spoils:
            monkeypatch.setattr(
                recorded_steps.Recording,
                "__call__",
                lambda self, inputs: replay(self, {**inputs, "input_ids": self.held["input_ids"]}),
            )
        recorded_here.clear()
        assert (decoding_ways.with_static_steps(model, PLAIN, 0, 0) == RECORDED) != spoils
        assert len(recorded_here) == decoding_ways.GRAPH_STEPS - 2


@pytest.mark.parametrize("fails_at", [None, 1, 2])
def test_a_step_is_taken_once_and_then_recorded_on_one_stream_of_its_own(
    fails_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of torch.cuda, whose names stand in here: waits are refused while the step is taken, and the
    current stream goes on behind the other one, whatever fails."""
    done: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            done.append(f"{self.name} waits for {other.name}")

    class CUDAGraph:
        def replay(self) -> None:
            done.append("replay")

        def pool(self) -> str:
            return "pool"

    @contextmanager
    def block(name: str) -> Iterator[None]:
        done.append(f"{name}, begun")
        try:
            yield
        finally:
            done.append(f"{name}, ended")

    def recording(graph: CUDAGraph, *, pool: Any, stream: Stream, capture_error_mode: str) -> Any:
        assert isinstance(graph, CUDAGraph) and (pool, capture_error_mode) == ("of others", "thread_local")
        return block(f"recording on {stream.name}")

    def step() -> Tensor:
        done.append("step")
        if done.count("step") == fails_at:
            raise RuntimeError("it waits")
        return torch.tensor(float(done.count("step")))

    names = {
        "Stream": lambda _: Stream("side"), "current_stream": lambda _: Stream("current"), "CUDAGraph": CUDAGraph,
        "stream": lambda stream: block(stream.name), "graph": recording, "get_sync_debug_mode": lambda: 1,
        "set_sync_debug_mode": lambda mode: done.append(f"waits: {mode}"),
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recorded_steps._stream.cache_clear()
    taken = ["side waits for current", "side, begun", "waits: error", "step", "waits: 1"]
    recorded = ["recording on side, begun", "step", "recording on side, ended"]
    end = ["side, ended", "current waits for side"]
    if fails_at is None:
        logits, graph = record(step, torch.device("cuda:0"), "of others")
        assert (float(logits), float(graph.logits), graph.pool) == (1, 2, "pool")
        graph.replay()
        end.append("replay")
    else:
        with pytest.raises(RuntimeError, match="it waits"):
            record(step, torch.device("cuda:0"), "of others")
    assert done == [*taken, *(recorded if fails_at != 1 else []), *end]
    recorded_steps._stream.cache_clear()


@on_a_card
def test_what_cannot_be_recorded_leaves_the_card_as_it_was() -> None:
    """Refused beforehand, or by CUDA in the middle of a recording; the next one is right."""
    x = torch.ones(8, device=device())

    def waits() -> Tensor:
        return x * float(x.sum())

    def fails_in_recording() -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return x * 2

    for step in (waits, fails_in_recording):
        with pytest.raises(RuntimeError):
            record(step, x.device, None)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.cuda.get_sync_debug_mode() == 0
        before, graph = record(lambda: x + 1, x.device, None)
        x.add_(1)
        graph.replay()
        assert torch.equal(before + 1, graph.logits)


def test_the_stand_in_behaves_as_a_graph_does() -> None:
    """It writes where the recording did, and undoes what recording did to older tensors."""
    x, total = torch.ones(2), torch.zeros(2)

    def step() -> Tensor:
        total.add_(x)
        return total[:, None].expand(2, 3) * 2

    logits, graph = taped(step, torch.device("cpu"), None)
    assert torch.equal(total, torch.ones(2)), "taken once"
    x.fill_(5)
    graph.replay()
    assert torch.equal(total, torch.full((2,), 6.0)) and torch.equal(graph.logits, torch.full((2, 3), 12.0))
    assert torch.equal(logits, torch.full((2, 3), 2.0))
    with pytest.raises(RuntimeError, match="waits"):
        taped(lambda: x * float(x.sum()), torch.device("cpu"), None)
