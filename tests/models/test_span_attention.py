"""Rows cut into spans: what is read off a mask, and the same states and gradients as under the mask itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny_models import FAMILIES, build_model
from tdpo.batches import ResponseBatch, ResponseCollator, TokenizedPair, shared_prefix_batch
from tdpo.models import hidden_states, response_hidden, spans
from tdpo.models.span_attention import SpanAttention, attention_restored
from tdpo.models.spans import Span, SpanMask, spans_of, with_spans

PAIRS = [
    TokenizedPair.of([5, 6, 7, 8, 9], [20, 21, 22, 1], [30, 31, 1]),
    TokenizedPair.of([11], [12, 1], [13]),
    TokenizedPair.of([40, 41, 42], [50, 51, 52, 53, 54, 1], [55, 56, 57, 58, 1]),
    TokenizedPair.of([40, 41, 42], [60, 61], [62, 63, 64]),
]
IDS = st.lists(st.integers(1, 30), min_size=1, max_size=9)


@pytest.fixture(autouse=True)
def _attention_as_it_was() -> Iterator[None]:
    """Each test begins without it: a training of another file in this process may have left it there."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with attention_restored():
        present = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if isinstance(present, SpanAttention):
            ALL_ATTENTION_FUNCTIONS["sdpa"] = present.plain
        yield


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_COST", -(10**6))


def row_of(pairs: list[TokenizedPair], rows: list[list[int]] | None = None, group: bool = False) -> Tensor:
    return shared_prefix_batch(pairs, 0, rows, group_prompts=group).attention_mask[:, 0]


# ---- what is read off a mask ----


def test_a_pair_is_two_spans_and_its_padding_none() -> None:
    """Prompt and chosen are one causal stretch; rejected looks back at the prompt."""
    first, second = row_of(PAIRS[:2])
    assert spans_of(first) == [Span(0, 9), Span(9, 12, 0, 5)]
    assert spans_of(second) == [Span(0, 3), Span(3, 4, 0, 1)], "eight columns of padding"


def test_packed_and_grouped_rows_are_cut_at_every_sequence() -> None:
    [packed] = row_of(PAIRS[:2], [[0, 1]])
    assert spans_of(packed) == [Span(0, 9), Span(9, 12, 0, 5), Span(12, 15), Span(15, 16, 12, 13)]
    [grouped] = row_of(PAIRS[2:], [[0, 1]], group=True)
    assert spans_of(grouped) == [Span(0, 9), Span(9, 14, 0, 3), Span(14, 16, 0, 3), Span(16, 19, 0, 3)]


@examples(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.builds(TokenizedPair.of, IDS | st.just([4, 7]), st.just([]) | IDS, IDS), min_size=1, max_size=6),
    budget=st.integers(2, 60) | st.none(),
)
def test_every_layout_is_made_of_spans(pairs: list[TokenizedPair], budget: int | None) -> None:
    batch = ResponseBatch.from_inputs(ResponseCollator(0, True, budget, group_prompts=budget is None)(pairs))
    for row in batch.attention_mask[:, 0]:
        cut = spans_of(row)
        assert cut is not None
        assert [span.end for span in cut[:-1]] == [span.start for span in cut[1:]], "no gap"
        assert cut[-1].end == int(row.diagonal().sum()), "up to the padding"


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(6, 6, dtype=torch.bool),  # both directions
        torch.eye(6, dtype=torch.bool) | (torch.arange(6) % 2 == 0).expand(6, 6).tril(),  # every second position
        torch.ones(6, 6, dtype=torch.bool).tril() & (torch.arange(6) > 1).expand(6, 6),  # padding in front
        torch.zeros(6, 6, dtype=torch.bool),
    ],
)
def test_a_mask_of_another_make_has_no_spans(mask: Tensor) -> None:
    assert spans_of(mask) is None


def test_a_sliding_window_is_too_many_spans_to_pay() -> None:
    mask = torch.ones(96, 96, dtype=torch.bool).tril().triu(-31)
    cut = spans_of(mask)
    assert cut is not None and len(cut) == 96 - 31 and cut[1] == Span(32, 33, 1, 32)
    assert not noted(mask[None, None])


def test_padding_that_something_sees_is_no_padding() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[3] = torch.tensor([True, False, False, False])
    assert spans_of(mask) == [Span(0, 3)]
    mask[1, 3] = True
    assert spans_of(mask) is None


# ---- the same numbers ----


def states_and_gradients(model: Any, batch: ResponseBatch) -> list[Tensor]:
    model.zero_grad()
    states = response_hidden(model, batch.model_inputs(), batch.response_index)
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    (weights * states).sum().backward()
    return [states.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def without_spans(monkeypatch: pytest.MonkeyPatch, model: Any, batch: ResponseBatch) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(hidden_states, "with_spans", lambda additive, _: additive)
        result = states_and_gradients(model, batch)
    vars(batch.attention_mask).pop(hidden_states.MADE)  # a batch keeps the mask that was made for it
    return result


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the queries that reach PyTorch's attention from here on."""
    calls: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(query.shape[2])
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return calls


LAYOUTS = {
    "a pair a row": (PAIRS, None, False),
    "rows alike": ([PAIRS[0]] * 3, None, False),
    "packed": (PAIRS, [[0, 1], [2], [3]], False),
    "one row": (PAIRS, [[3, 1, 0, 2]], False),
    "grouped": (PAIRS, [[0], [1], [2, 3]], True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_spans_give_the_states_and_gradients_of_the_mask(
    family: str, layout: str, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float64's rounding, with shared key and value heads (llama, qwen2) and without, padding included."""
    pairs, rows, group = LAYOUTS[layout]
    batch = shared_prefix_batch(pairs, 0, rows, group_prompts=group)
    model = build_model(family, dtype=torch.float64)
    expected = without_spans(monkeypatch, model, batch)
    calls = count_calls(monkeypatch)
    found = states_and_gradients(model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * float(theirs.abs().max()))
    if family != "gemma2":  # which caps attention's logits, and so has transformers' own code
        blocks = 1 if layout == "rows alike" else len(batch.input_ids)
        assert len(calls) >= 2 * blocks, "two layers"
        assert batch.input_ids.shape[1] not in calls, "no call for a whole row"


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_see_the_same_spans(reentrant: bool, always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = shared_prefix_batch(PAIRS, 0)
    model = build_model("llama", dtype=torch.float64).train()
    expected = without_spans(monkeypatch, model, batch)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    calls = count_calls(monkeypatch)
    found = states_and_gradients(model, batch)
    assert batch.input_ids.shape[1] not in calls
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * float(theirs.abs().max()))


def test_a_mask_that_is_changed_on_the_way_is_used_as_it_is(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has no spans beside it: slower, and right."""
    batch = shared_prefix_batch(PAIRS, 0)
    model = build_model("llama", dtype=torch.float64)
    expected = without_spans(monkeypatch, model, batch)
    forward = type(model.model).forward

    def copies(self: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, attention_mask=attention_mask.clone(), **kwargs)

    monkeypatch.setattr(type(model.model), "forward", copies)
    calls = count_calls(monkeypatch)
    found = states_and_gradients(model, batch)
    assert set(calls) == {batch.input_ids.shape[1]}
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))


def test_attention_without_spans_is_what_it_was(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        before = model(ids).logits, model.generate(ids, max_new_tokens=5, do_sample=False)
        response_hidden(model, shared_prefix_batch(PAIRS, 0).model_inputs(), torch.tensor([0]))
        assert span_attention_is_installed()
        assert before[0].equal(model(ids).logits)
        assert before[1].equal(model.generate(ids, max_new_tokens=5, do_sample=False))


def span_attention_is_installed() -> bool:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return isinstance(ALL_ATTENTION_FUNCTIONS["sdpa"], SpanAttention)


def test_it_is_taken_away_again(always: None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with attention_restored():
        response_hidden(build_model("llama"), shared_prefix_batch(PAIRS, 0).model_inputs(), torch.tensor([0]))
        assert span_attention_is_installed()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before and not span_attention_is_installed()


def test_what_is_computed_from_a_mask_with_spans_has_none(always: None) -> None:
    mask = row_of(PAIRS)[:, None]
    noted_mask = with_spans(torch.zeros(mask.shape), mask)
    assert type(noted_mask) is SpanMask and noted_mask.to(torch.float32) is noted_mask
    assert {type(other) for other in (noted_mask.clone(), noted_mask[..., :3], noted_mask + 1)} == {Tensor}


def test_asked_for_twice_it_is_there_once(always: None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, batch = build_model("llama"), shared_prefix_batch(PAIRS, 0)
    found = []
    for _ in range(2):
        response_hidden(model, batch.model_inputs(), batch.response_index)
        found.append(ALL_ATTENTION_FUNCTIONS["sdpa"])
    assert found[0] is found[1]


# ---- when it pays ----


def noted(mask: Tensor) -> bool:
    return isinstance(with_spans(torch.zeros(mask.shape), mask), SpanMask)


def test_many_short_sequences_stay_under_the_mask() -> None:
    """A call of its own for a response of two tokens costs more than the products that it saves."""
    short = [TokenizedPair.of([4] * 6, [1, 2], [3, 4])] * 20
    assert not noted(shared_prefix_batch(short, 0, [list(range(20))], group_prompts=True).attention_mask)
    long = [TokenizedPair.of([4] * 128, [5] * 64, [6] * 64)]
    assert noted(shared_prefix_batch(long, 0).attention_mask)


def test_rows_of_which_one_is_of_another_make_are_left_alone() -> None:
    mask = shared_prefix_batch([TokenizedPair.of([4] * 128, [5] * 64, [6] * 64)] * 2, 0).attention_mask
    assert noted(mask)
    mask[1, 0, 3, 7] = True
    assert not noted(mask)
    assert not noted(mask.expand(2, 4, -1, -1)), "a mask for each head"
