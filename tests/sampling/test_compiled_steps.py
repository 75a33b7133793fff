"""Compiled decoding steps: the same responses from a cache of full size, and when they are used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tdpo.models.devices import placed
from tdpo.sampling import compiled_steps, decoding_ways
from tdpo.sampling.compiled_steps import rows_to_keep
from tdpo.sampling.decoding import DecodingBatch, Way
from tdpo.sampling.sampler import SamplingSettings, sample

PROMPTS = ["the cat sat", "the dog", "the cat sat on the mat and what a wonderful day"]
STATIC = Way("cache", pads=True, shares_prefix=True, is_static=True)


@pytest.fixture
def compiled_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are on the GPU and their steps are compiled; without a GPU they run as they are written, on a full cache.

    By hand, `options = {"backend": "eager"}` in place of the second line traces them on a CPU, which takes long.
    """
    monkeypatch.setattr(compiled_steps, "pays", lambda model: True)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield
    compiled_steps._compiled.clear()


def test_compiled_steps_sample_the_same_responses(
    compiled_here: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Prompts of several lengths with a common beginning; rows end at different times, and leave by powers of two."""
    settings = SamplingSettings(num_samples=3, max_new_tokens=8, seed=3, batch_size=16)
    model = placed(tiny_model("llama"), "auto")
    ways = []
    plain = decoding_ways.with_compiled_steps
    monkeypatch.setattr(
        "tdpo.sampling.sampler.with_compiled_steps", lambda *args: ways.append(plain(*args)) or ways[-1]
    )
    ours = sample(model, tokenizer, PROMPTS, settings)
    assert ways == [STATIC]
    monkeypatch.setattr(compiled_steps, "pays", lambda model: False)
    assert [r.token_ids for r in ours] == [r.token_ids for r in sample(model, tokenizer, PROMPTS, settings)]
    assert ways[1:] == [Way("cache", pads=True, shares_prefix=True)]


def test_selected_rows_lie_where_a_graph_may_write(compiled_here: None, tiny_model: Callable[..., Any]) -> None:
    """Unmarked, what a step writes into would keep torch from recording a graph, which is what is compiled for."""
    batch = DecodingBatch(placed(tiny_model("llama"), "auto"), 16, STATIC)
    with torch.no_grad():
        batch.prefill([[5, 6, 7, 8], [5, 6, 9]])
        for slots in ([0, 1, 0], [0, 2]):
            batch.select(slots)
            written = [states for layer in batch.state.layers for states in (layer.keys, layer.values)]
            assert len(written) == 4 and all(states._dynamo_static_input_type for states in written)
            batch.feed(torch.tensor([[5]] * len(slots), device=batch.mask.device), batch.mask.new_ones(len(slots), 1))


def test_a_graph_that_replays_wrongly_is_noticed(
    compiled_here: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    """torch replays from the third step of a shape on: until then everything is right."""
    way = Way("cache", pads=True, shares_prefix=True)
    for spoils in (False, True):
        calls: dict[tuple[int, ...], int] = {}
        model = tiny_model("llama", dtype=torch.bfloat16)

        def replayed(given: Any, *, calls: dict[Any, int] = calls, spoils: bool = spoils, **inputs: Any) -> Any:
            output, shape = given(**inputs), tuple(inputs["input_ids"].shape)
            calls[shape] = calls.get(shape, 0) + 1
            if spoils and calls[shape] > 2:
                output.logits = output.logits.roll(1, dims=-1)
            return output

        monkeypatch.setattr(torch, "compile", lambda function, run=replayed, **_: run)
        assert decoding_ways.with_compiled_steps(model, way).is_static != spoils


def test_a_model_that_was_compiled_for_is_let_go_of(compiled_here: None, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    compiled_steps.compiled_step(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_steps_that_give_other_logits_are_not_used(
    compiled_here: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    way = Way("cache", pads=True, shares_prefix=True)
    monkeypatch.setattr(decoding_ways, "distance", lambda *_: 0.5)
    assert decoding_ways.with_compiled_steps(tiny_model("llama"), way) == way
    for other in (Way("own", pads=True), Way("none", pads=False)):
        assert decoding_ways.with_compiled_steps(tiny_model("llama"), other) == other
    assert decoding_ways.with_compiled_steps(tiny_model("gemma2"), way) == way, "a window does not keep all keys"


def test_on_a_cpu_and_for_few_steps_nothing_is_compiled(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    for _ in range(compiled_steps.AFTER_STEPS):
        compiled_steps.count_step(model)
    assert not compiled_steps.pays(model)


def test_batches_shrink_by_powers_of_two() -> None:
    assert rows_to_keep([0, 3], 8) == [0, 3]
    assert rows_to_keep([1, 2, 5], 8) == [0, 1, 2, 5], "a finished row fills up"
    assert rows_to_keep([1, 2, 5, 6, 7], 8) == list(range(8)), "until half of them may go"
    assert rows_to_keep([4], 6) == [4]
