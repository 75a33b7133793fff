"""Recorded and compiled decoding steps: the same responses from a cache of full size, in one memory, and when they are
used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.taped_graphs import recorded_here  # noqa: F401
from tdpo.models.devices import placed
from tdpo.sampling import compiled_steps, decoding_ways, recorded_steps
from tdpo.sampling.compiled_steps import CAPACITY_STEP, capacity_for, rows_to_keep
from tdpo.sampling.decoding import Way
from tdpo.sampling.reused_cache import ReusedCache
from tdpo.sampling.sampler import SamplingSettings, encode_prompts, sample

PROMPTS = ["the cat sat", "the dog", "the cat sat on the mat and what a wonderful day"]
CHATS = [[{"role": "user", "content": text}] for text in (*PROMPTS, "a", "the mat and the dog", "what a day")]
SETTINGS = SamplingSettings(num_samples=3, max_new_tokens=8, seed=3, batch_size=6)  # two prompts a batch
PLAIN = Way("cache", pads=True, shares_prefix=True)
COMPILED, RECORDED = replace(PLAIN, steps="compiled"), replace(PLAIN, steps="recorded")


@pytest.fixture
def compiled_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are on the GPU and their steps are compiled; without one they run as they are written, on a full cache."""
    monkeypatch.setattr(recorded_steps, "pays", lambda *_: False)
    monkeypatch.setattr(compiled_steps, "pays", lambda *_: True)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield
    compiled_steps._compiled.clear()


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS], ids=["plain", "chat"])
@pytest.mark.parametrize("way", [RECORDED, COMPILED], ids=["recorded", "compiled"])
def test_static_steps_sample_the_same_responses(
    way: Way,
    prompts: list[Any],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., Any],
    tokenizer: Any,
) -> None:
    """Prompts of several lengths with a common beginning, and batches one after another in one memory; rows end at
    different times, and leave by powers of two."""
    replays = request.getfixturevalue(f"{way.steps}_here")
    model = placed(tiny_model("llama"), "auto")
    model.generation_config.eos_token_id = list(range(2, 384, 3))
    ways = []
    plain = decoding_ways.with_static_steps
    monkeypatch.setattr("tdpo.sampling.sampler.with_static_steps", lambda *args: ways.append(plain(*args)) or ways[-1])
    monkeypatch.setattr(compiled_steps, "CAPACITY_STEP", 4)
    monkeypatch.setattr(recorded_steps, "OF_A_SHAPE", 0)
    ours = sample(model, tokenizer, prompts, SETTINGS)
    assert ways == [way] * ((len(prompts) + 1) // 2)
    assert len({len(response.token_ids) for response in ours}) > 3
    assert way == COMPILED or len(set(replays)) > 2, "not those of the probe alone"
    assert bool(compiled_steps.steps_taken(model)) == (way == RECORDED), "what is not compiled counts towards it"
    for steps in (recorded_steps, compiled_steps):
        monkeypatch.setattr(steps, "pays", lambda *_: False)
    assert [r.token_ids for r in ours] == [r.token_ids for r in sample(model, tokenizer, prompts, SETTINGS)]
    assert set(ways[len(ways) // 2 :]) == {PLAIN}


def test_the_batches_of_a_call_lie_in_one_memory(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    """A graph belongs to its addresses: recorded for some rows and a capacity, it serves every batch of the call, and
    its memory is what the largest batch takes. After the call it is given back."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = list(range(2, 384, 3))
    places: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    caches: list[weakref.ref[ReusedCache]] = []
    taken = set()

    def seen(given: Any, **inputs: Any) -> Any:
        cache = inputs["past_key_values"]
        states = [states for layer in cache.layers for states in (layer.keys, layer.values)]
        written = [*states, *(layer.cumulative_length for layer in cache.layers)]
        assert all(tensor._dynamo_static_input_type for tensor in written), "or torch records no graph"
        places.setdefault(inputs["attention_mask"].shape, set()).add(tuple(tensor.data_ptr() for tensor in written))
        taken.add(
            sum(len(memory) for layer in cache.layers for memory in layer.memory)
            / sum(s[0, :, 0].numel() for s in states)
        )
        if cache not in [ref() for ref in caches]:
            caches.append(weakref.ref(cache))
        return given(**inputs)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: seen)
    monkeypatch.setattr(compiled_steps, "pays", lambda *_: True)
    monkeypatch.setattr(compiled_steps, "CAPACITY_STEP", 4)
    way = decoding_ways.with_static_steps(model, PLAIN, 0, 0)  # the probe's own
    assert way == COMPILED
    for collected in (places, caches, taken):
        collected.clear()
    sample(model, tokenizer, CHATS, SETTINGS)
    assert len(caches) == 1 and len({rows for rows, _ in places}) > 1 and len({width for _, width in places}) > 1
    assert len(set.union(*places.values())) == 1
    longest = max(map(len, encode_prompts(tokenizer, CHATS)))
    assert taken == {SETTINGS.batch_size * (longest + SETTINGS.max_new_tokens)}
    gc.collect()
    assert caches[0]() is None
    compiled_steps._compiled.clear()


def test_nothing_of_an_earlier_batch_stays(tiny_model: Callable[..., Any]) -> None:
    cache = ReusedCache(tiny_model("llama").config)
    layer = cache.layers[0]

    def states(rows: int) -> torch.Tensor:
        return torch.arange(rows * 2 * 3 * 4.0).reshape(rows, 2, 3, 4)

    cache.begin(8)
    layer.update(states(2) + torch.inf, states(2) + torch.inf)
    cache.begin(5)
    keys, _ = layer.update(states(2), -states(2))
    assert keys.shape == (2, 2, 5, 4) and torch.equal(keys[:, :, :3], states(2)) and not keys[:, :, 3:].any()
    layer.reorder_cache(torch.tensor([1, 0, 1, 1]))
    layer.reorder_cache(torch.tensor([3, 1]))
    assert torch.equal(layer.keys[:, :, :3], states(2)[[1, 0]]) and torch.equal(layer.values, -layer.keys)
    assert int(layer.get_seq_length()) == 3


def test_all_shapes_are_compiled_for_once(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Traced, with the sizes as the only inputs that vary, and written is only what a CUDA graph may write into. What
    is compiled holds on to no cache."""
    graphs: list[torch.fx.GraphModule] = []
    caches: list[weakref.ref[ReusedCache]] = []

    def made(config: Any) -> ReusedCache:
        caches.append(weakref.ref(cache := ReusedCache(config)))
        return cache

    monkeypatch.setattr("tdpo.sampling.sampler.ReusedCache", made)
    monkeypatch.setattr(compiled_steps, "pays", lambda *_: True)
    monkeypatch.setattr(compiled_steps, "CAPACITY_STEP", 4)
    options = {**compiled_steps.options, "backend": lambda graph, _: graphs.append(graph) or graph}
    monkeypatch.setattr(compiled_steps, "options", {k: v for k, v in options.items() if k != "mode"})
    model = tiny_model("llama")
    sample(model, tokenizer, CHATS[:4], SETTINGS)
    [graph] = graphs
    inputs = {node: node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"}
    assert not [node for node, value in inputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
                and not value.dim()], "a number on the CPU forbids a CUDA graph"  # fmt: skip
    written = {node.args[0] for node in graph.graph.nodes if node.op == "call_method" and node.target in WRITES}
    assert len(written & inputs.keys()) >= 4
    assert all("_dynamo_static_input_type" in node.meta["tensor_dict"] for node in written & inputs.keys())
    gc.collect()
    assert [ref() for ref in caches] == [None]
    compiled_steps._compiled.clear()


WRITES = {"add_", "copy_", "index_copy_"}


def test_a_graph_that_replays_wrongly_is_noticed(
    compiled_here: None, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    """torch replays from the third step of a shape on: until then everything is right."""
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
        assert decoding_ways.with_static_steps(model, PLAIN, 0, 0).is_static != spoils


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
    monkeypatch.setattr(decoding_ways, "distance", lambda *_: 0.5)
    assert decoding_ways.with_static_steps(tiny_model("llama"), PLAIN, 0, 0) == PLAIN
    for other in (Way("own", pads=True), Way("none", pads=False)):
        assert decoding_ways.with_static_steps(tiny_model("llama"), other, 0, 0) == other
    assert decoding_ways.with_static_steps(tiny_model("gemma2"), PLAIN, 0, 0) == PLAIN, (
        "a window does not keep all keys"
    )


class OnCard(torch.nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names or ("cuda:0",)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter([SimpleNamespace(device=torch.device(name)) for name in self.names])


def test_graphs_pay_from_a_number_of_steps_on_one_card_without_autocast(tiny_model: Callable[..., Any]) -> None:
    """Recording pays for few steps, compiling for many, and for many more where steps are recorded anyway."""
    after = compiled_steps.AFTER_STEPS
    rules: list[tuple[int, Callable[..., bool]]] = [
        (recorded_steps.FROM_STEPS, recorded_steps.pays),
        (after["plain"], compiled_steps.pays),
        (after["recorded"], lambda model, steps: compiled_steps.pays(model, steps, "recorded")),
    ]
    assert [steps for steps, _ in rules] == sorted({steps for steps, _ in rules})
    for model, pays in ((tiny_model("llama"), False), (OnCard(), True), (OnCard("cuda:0", "cuda:1"), False)):
        for _ in range(3):
            compiled_steps.count_step(model)
        for steps, rule in rules:
            assert not rule(model, steps - 4)
            assert rule(model, steps - 3) == pays
            torch.set_autocast_enabled("cuda", True)  # `torch.autocast` leaves it off where there is no card
            try:
                assert not rule(model, steps)
            finally:
                torch.set_autocast_enabled("cuda", False)


def test_steps_are_compiled_where_that_saves_more_than_recording(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any]
) -> None:
    """Recorded where nothing speaks against it; compiling is compared with that."""
    model, asked = tiny_model("llama"), []
    monkeypatch.setattr(recorded_steps, "is_on_one_card", lambda _: True)
    monkeypatch.setattr(compiled_steps, "is_on_one_card", lambda _: True)
    monkeypatch.setattr(decoding_ways, "distance", lambda _, way, __: asked.append(way.steps) or far[way.steps])

    def ways(*steps: int) -> list[str]:
        decoding_ways._static_of_models.clear()
        asked.clear()
        return [decoding_ways.with_static_steps(model, PLAIN, to_come=n, at_most=2 * n).steps for n in steps]

    plain, recorded = compiled_steps.AFTER_STEPS["plain"], compiled_steps.AFTER_STEPS["recorded"]
    far = {"recorded": 0.0, "compiled": 0.0}
    steps = (recorded_steps.FROM_STEPS // 2 - 1, recorded_steps.FROM_STEPS // 2, plain, recorded - 1, recorded)
    assert ways(*steps) == ["plain", "recorded", "recorded", "recorded", "compiled"]
    assert asked == ["recorded", "compiled"], "each once"
    far = {"recorded": 1.0, "compiled": 0.0}
    assert ways(*steps) == ["plain", "plain", "compiled", "compiled", "compiled"]
    far = {"recorded": 0.0, "compiled": 1.0}
    assert ways(*steps) == ["plain", *["recorded"] * 4]


def test_the_steps_to_come_are_judged_by_the_batches_before(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    to_come, at_most = [], []
    monkeypatch.setattr(compiled_steps, "pays", lambda _, steps, *__: bool(to_come.append(steps)))
    monkeypatch.setattr(recorded_steps, "pays", lambda _, steps: bool(at_most.append(steps)))
    sample(tiny_model("llama"), tokenizer, CHATS, SETTINGS)
    assert to_come == [0, 2 * 7, 7], "three batches of as many steps: the first token comes from the prompt"
    assert at_most == [3 * 7, 2 * 7, 7]
    to_come.clear()
    model = tiny_model("llama")
    model.generation_config.eos_token_id = list(range(384))
    sample(model, tokenizer, CHATS, SETTINGS)
    assert to_come == [0, 0, 0], "responses that end at once take none"


def test_batches_shrink_by_powers_of_two() -> None:
    assert rows_to_keep([0, 3], 8) == [0, 3]
    assert rows_to_keep([1, 2, 5], 8) == [0, 1, 2, 5], "a finished row fills up"
    assert rows_to_keep([1, 2, 5, 6, 7], 8) == list(range(8)), "until half of them may go"
    assert rows_to_keep([4], 6) == [0, 4], "one row alone would be compiled for"
    assert rows_to_keep([0], 1) == [0] and rows_to_keep([1], 2) == [0, 1]


def test_capacities_are_few() -> None:
    step = CAPACITY_STEP
    assert [capacity_for(tokens, 3 * step + 5) for tokens in (1, step, step + 1, 3 * step + 5)] == [
        step, step, 2 * step, 3 * step + 5,
    ]  # fmt: skip
    assert capacity_for(5, 7) == 7, "no more than the longest row has"
