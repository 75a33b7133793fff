"""Pairs that share their prompt's computation: the same statistics and gradients as padded rows, or the fallback."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny_models import FAMILIES, build_model
from tdpo import score_pairs, tdpo2_loss
from tdpo.batches import (
    ResponseBatch,
    ResponseCollator,
    TokenizedPair,
    full_row,
    fullest_row,
    group_rows,
    pack_rows,
    padded_batch,
    row_length,
    shared_length,
    shared_prefix_batch,
)
from tdpo.models import reference_for, response_hidden
from tdpo.scoring import layout as layout_module
from tdpo.scoring.layout import (
    choose_layout,
    cover,
    grouped_collator,
    pack_prompts,
    share_prefixes,
)
from tdpo.scoring.policy_statistics import PolicyStatistics
from tdpo.scoring.row_forms import TOLERANCE

# Different lengths everywhere, a one-token response, a one-token prompt; short enough for Gemma's window of 16.
PAIRS = [
    TokenizedPair.of([5, 6, 7, 8, 9], [20, 21, 22, 1], [30, 31, 1]),
    TokenizedPair.of([11], [12, 1], [13]),
    TokenizedPair.of([40, 41, 42], [50, 51, 52, 53, 54, 1], [55, 56, 57, 58, 1]),
]
LONG = TokenizedPair.of(list(range(5, 45)), [20, 21, 22, 1], [30, 31, 1])


def loss_and_gradients(model: Any, reference: Any, batch: ResponseBatch) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    stats = PolicyStatistics.of(model, reference)(model, batch)
    scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
    per_pair = tdpo2_loss(scores, beta=0.5, alpha=0.7).per_pair
    per_pair.sum().backward()
    return per_pair.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("rows", [None, [[0, 1, 2]], [[2, 1], [0]]], ids=["a pair a row", "one row", "two rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layouts_give_one_loss_and_one_gradient(family: str, rows: list[list[int]] | None) -> None:
    """Packed, Gemma's row is longer than its window, and no pair is."""
    model = build_model(family)
    reference = reference_for(model, build_model(family, seed=1))
    padded, padded_grads = loss_and_gradients(model, reference, padded_batch(PAIRS, 0))
    shared, shared_grads = loss_and_gradients(model, reference, shared_prefix_batch(PAIRS, 0, rows))
    torch.testing.assert_close(shared, padded, rtol=1e-4, atol=1e-5)
    largest = max(float(g.abs().max()) for g in padded_grads)
    for ours, theirs in zip(shared_grads, padded_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


def test_the_flat_tokens_do_not_know_the_layout() -> None:
    padded, shared = padded_batch(PAIRS, 0), shared_prefix_batch(PAIRS, 0)
    assert shared.target_ids.equal(padded.target_ids)
    assert shared.sequence_index.equal(padded.sequence_index)
    assert shared.num_tokens == sum(len(p.prompt_ids + p.chosen_ids + p.rejected_ids) for p in PAIRS)
    assert padded.num_tokens == shared.num_tokens + sum(len(p.prompt_ids) for p in PAIRS)


def test_rejected_tokens_do_not_see_chosen_ones() -> None:
    model = build_model("llama")
    other = [TokenizedPair.of(p.prompt_ids, [60] * len(p.chosen_ids), p.rejected_ids) for p in PAIRS]
    states = []
    for pairs in (PAIRS, other):
        batch = shared_prefix_batch(pairs, 0)
        reference = reference_for(model, build_model("llama", seed=1))
        stats = PolicyStatistics.of(model, reference)(model, batch)
        states.append(stats.policy_logp[batch.sequence_index >= len(pairs)])
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_compares_one_pair_under_both_layouts(family: str) -> None:
    model = build_model(family)
    assert share_prefixes(model, PAIRS, 0, "auto")
    assert not share_prefixes(model, PAIRS, 0, "off")
    # Beyond Gemma's sliding window the mask, which it takes as it is, would let tokens see too far.
    assert share_prefixes(model, [*PAIRS, LONG], 0, "auto") == (family != "gemma2")


def test_sharing_that_the_model_cannot_do_is_refused_when_asked_for() -> None:
    with pytest.raises(ValueError, match=r"prefix_sharing='on'.*differ by"):
        share_prefixes(build_model("gemma2"), [LONG], 0, "on")


def test_a_model_that_fails_under_the_mask_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model = build_model("llama")
    forward = type(model.model).forward

    def no_four_dimensions(self: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            raise ValueError("masks have two dimensions here")
        return forward(self, *args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", no_four_dimensions)
    with caplog.at_level(logging.INFO):
        assert not share_prefixes(model, PAIRS, 0, "auto")
    assert "masks have two dimensions here" in caplog.text


def test_pairs_without_a_prompt_are_padded() -> None:
    collator = ResponseCollator(0, share_prefixes=True)
    inputs = collator([TokenizedPair.of([], [5, 6], [7, 8]), PAIRS[0]])
    assert inputs["attention_mask"].dim() == 2
    assert collator(PAIRS)["attention_mask"].dim() == 4


def test_pairs_without_a_prompt_have_no_shared_layout() -> None:
    with pytest.raises(ValueError, match=r"memory:0 has no prompt to share; lay it out with padded_batch"):
        shared_prefix_batch([TokenizedPair.of([], [5, 6], [7, 8])], 0)


# ---- packed rows ----

IDS = st.lists(st.integers(1, 30), min_size=1, max_size=9)
RAGGED = st.lists(
    # Few different prompts, so that pairs of one batch often have the same.
    st.builds(
        TokenizedPair.of,
        prompt_ids=IDS | st.sampled_from([[4], [4, 7], [9] * 6]),
        chosen_ids=st.just([]) | IDS,
        rejected_ids=IDS,
    ),
    min_size=1,
    max_size=9,
)


@examples(max_examples=300, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20), budget=st.integers(2, 150))
def test_rows_are_within_the_budget_and_cost_no_more_than_a_pair_a_row(lengths: list[int], budget: int) -> None:
    rows = pack_rows(lengths, budget)
    assert sorted(p for row in rows for p in row) == list(range(len(lengths))), "every pair once"
    loads = [sum(lengths[p] for p in row) for row in rows]
    assert all(load <= budget or len(row) == 1 for load, row in zip(loads, rows, strict=True))
    assert len(rows) * max(loads) <= len(lengths) * max(lengths)
    assert rows == pack_rows(list(lengths), budget), "nothing random"


def test_packing_fills_rows() -> None:
    lengths = [60, 30, 20, 10, 30, 50, 40]  # 240 tokens
    assert [sum(lengths[p] for p in row) for row in pack_rows(lengths, 60)] == [60, 60, 60, 60]
    assert len(pack_rows(lengths, 120)) == 4, "wider rows would save nothing more"
    assert pack_rows([5, 5, 5], 1000) == [[0], [1], [2]], "equal pairs have no padding to save"
    assert pack_rows([50, 4, 3], 10) == [[0], [1, 2]], "a pair over the budget is alone"


@examples(max_examples=200, deadline=None)
@given(pairs=RAGGED, budget=st.integers(2, 60))
def test_every_layout_has_the_same_flat_tokens_in_the_same_order(pairs: list[TokenizedPair], budget: int) -> None:
    layouts: tuple[tuple[Any, ...], ...] = ((False,), (True,), (True, budget), (True, None, True))
    padded, shared, packed, grouped = (
        ResponseBatch.from_inputs(ResponseCollator(0, *layout)(pairs)) for layout in layouts
    )
    assert shared.num_tokens == sum(map(shared_length, pairs))
    assert packed.num_tokens == shared.num_tokens
    for batch in (shared, packed, grouped):
        assert batch.target_ids.equal(padded.target_ids)
        assert batch.sequence_index.equal(padded.sequence_index)
        assert batch.num_tokens <= shared.num_tokens
        assert batch.num_prompts == len(pairs)
    assert packed.input_ids.numel() <= shared.input_ids.numel() >= grouped.input_ids.numel()
    assert packed.input_ids.shape[1] <= max(budget, *map(shared_length, pairs))


@examples(max_examples=100, deadline=None)
@given(pairs=RAGGED, budget=st.integers(2, 60) | st.none())
def test_what_a_token_sees_spelled_out(pairs: list[TokenizedPair], budget: int | None) -> None:
    """Following the mask backwards from each predicting state gives prompt and response so far, at their positions."""
    batch = ResponseBatch.from_inputs(ResponseCollator(0, True, budget, group_prompts=budget is None)(pairs))
    width = batch.input_ids.shape[1]
    sequences = [p.prompt_ids + p.chosen_ids for p in pairs] + [p.prompt_ids + p.rejected_ids for p in pairs]
    done = [0] * len(sequences)
    assert batch.position_ids is not None
    for index, target, s in zip(batch.response_index, batch.target_ids, batch.sequence_index, strict=True):
        r, t = divmod(int(index), width)
        seen = batch.attention_mask[r, 0, t]
        before = len(pairs[int(s) % len(pairs)].prompt_ids) + done[int(s)]
        assert batch.input_ids[r][seen].tolist() == sequences[int(s)][:before]
        assert batch.position_ids[r][seen].tolist() == list(range(before))
        assert int(target) == sequences[int(s)][before]
        done[int(s)] += 1
    padding = ~batch.attention_mask.diagonal(dim1=-2, dim2=-1)[:, 0]
    assert not (batch.attention_mask & padding[:, None, None, :]).any(), "nothing attends to padding"
    assert batch.attention_mask.any(dim=-1).all(), "everything attends to something"
    assert (batch.input_ids[padding] == 0).all()


def test_pairs_of_one_prompt_share_it_where_that_pays() -> None:
    """By hand: a prompt of 6 tokens, responses of 2. Together 6 + 4 + 4 instead of twice 6 + 4; and not with a lone
    pair beside three of one prompt, where one wide row would make the other as wide."""
    prompt, other = [9] * 6, [4]
    pairs = [TokenizedPair.of(prompt, [1, 2], [3, 4]), TokenizedPair.of(prompt, [5, 6], [7, 8])]
    batch = ResponseBatch.from_inputs(ResponseCollator(0, True, group_prompts=True)(pairs))
    assert batch.input_ids.tolist() == [[*prompt, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids is not None and batch.position_ids[0, 6:].tolist() == [6, 7] * 4
    assert batch.attention_mask[0, 0, -1].nonzero()[:, 0].tolist() == [*range(6), 12, 13], "the prompt and itself"
    assert batch.response_index.tolist() == [5, 6, 5, 10, 5, 8, 5, 12], "chosen of both, then rejected"
    assert group_rows(pairs) == [[0, 1]]
    assert group_rows([TokenizedPair.of([4], [1, 2], [3])] * 3 + [TokenizedPair.of([4, 4], [1], [2])]) == [
        [0],
        [1],
        [2],
        [3],
    ]
    wide = TokenizedPair.of([9] * 100, [1] * 20, [2] * 20)
    lone = [TokenizedPair.of([n] * 100, [1] * 20, [2] * 20) for n in (3, 4, 5)]
    assert [len(row) for row in group_rows([wide] * 4 + lone)] == [2, 2, 1, 1, 1], "5 × 180, not 7 × 140 or 4 × 260"
    assert group_rows([pairs[0], TokenizedPair.of(other, [1], [2]), pairs[1]]) == [[0, 2], [1]]


@examples(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_grouped_rows_compute_the_fewest_tokens(drawn: list[tuple[int, int, int]]) -> None:
    """Against trying every number of pairs a row."""
    prompts = ([7], [8] * 4, [9] * 30)
    pairs = [TokenizedPair.of(prompts[which], [1] * chosen, [2] * rejected) for which, chosen, rejected in drawn]
    groups = [[p for p, (which, *_) in enumerate(drawn) if which == w] for w in range(3)]

    def computed(rows: list[list[int]]) -> int:
        return len(rows) * max(row_length(pairs, row, group_prompts=True) for row in rows)

    tried = [[group[at : at + most] for group in groups for at in range(0, len(group), most)] for most in range(1, 13)]
    assert computed(group_rows(pairs)) == min(map(computed, tried))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_has_the_states_of_padded_rows_where_the_model_takes_the_mask(family: str) -> None:
    model, make = build_model(family), torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(1, 300, (length,), generator=make).tolist()

    prompts = [ids(9), ids(4)]
    pairs = [TokenizedPair.of(prompts[i % 2], ids(2 + i), ids(6 - i)) for i in range(5)]
    collator = grouped_collator(model, pairs, 0)
    padded = ResponseBatch.from_inputs(ResponseCollator(0)(pairs))
    batch = ResponseBatch.from_inputs(collator(pairs))
    with torch.no_grad():
        found, expected = (response_hidden(model, b.model_inputs(), b.response_index) for b in (batch, padded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if family == "llama":
        assert collator.group_prompts and batch.input_ids.numel() < padded.input_ids.numel()


def test_a_model_that_does_not_take_the_mask_of_a_group_gets_a_row_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "_distance", lambda *_, packed=False, **__: float(packed))
    found = grouped_collator(build_model("llama"), [PAIRS[0], PAIRS[0]], 0)
    assert found.share_prefixes and not found.group_prompts


def states(model: Any, pairs: Sequence[TokenizedPair], rows: list[list[int]]) -> tuple[ResponseBatch, Tensor]:
    batch = shared_prefix_batch(pairs, 0, rows)
    with torch.no_grad():
        return batch, response_hidden(model, batch.model_inputs(), batch.response_index)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_does_not_know_who_shares_its_row(family: str) -> None:
    model, rows = build_model(family), [[1, 0, 2]]
    strangers = [TokenizedPair.of([70] * 5, [71] * 7, [72] * 2), PAIRS[1], TokenizedPair.of([73] * 2, [74] * 4, [75])]
    batch, first = states(model, [PAIRS[1], PAIRS[0], PAIRS[2]], rows)
    other, second = states(model, [strangers[0], PAIRS[0], strangers[2]], rows)
    mine, theirs = (b.sequence_index % 3 == 1 for b in (batch, other))
    assert int(mine.sum()) == len(PAIRS[0].chosen_ids + PAIRS[0].rejected_ids)
    torch.testing.assert_close(second[theirs], first[mine], rtol=1e-4, atol=1e-5)


def test_randomly_packed_rows_give_the_states_of_padded_ones() -> None:
    model, make = build_model("llama"), torch.Generator().manual_seed(0)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(1, most, (1,), generator=make))
        return torch.randint(1, 300, (length,), generator=make).tolist()

    for budget in (20, 45, 90, 200):
        pairs = [TokenizedPair.of(ids(12), ids(9), ids(14)) for _ in range(12)]
        rows = pack_rows([shared_length(pair) for pair in pairs], budget)
        assert len(rows) < len(pairs)
        padded = padded_batch(pairs, 0)
        with torch.no_grad():
            expected = response_hidden(model, padded.model_inputs(), padded.response_index)
        torch.testing.assert_close(states(model, pairs, rows)[1], expected, rtol=1e-3, atol=1e-4)


# ---- which layout runs ----


def chosen(model: Any, pairs: Sequence[TokenizedPair], budget: int | None, asked: Any = "auto") -> str:
    return choose_layout(model, pairs, 0, asked, budget).describe()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_is_compared_too(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(family)
    with caplog.at_level(logging.WARNING):
        assert chosen(model, PAIRS, 40) == "pairs share their prompt, packed into rows of at most 40 tokens"
        assert chosen(model, PAIRS, None) == "pairs share their prompt"
        assert chosen(model, PAIRS, None, "off") == "padded rows"
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        packed = chosen(model, [*PAIRS, LONG], 80)
    assert packed == (
        "padded rows" if family == "gemma2" else "pairs share their prompt, packed into rows of at most 80 tokens"
    )
    fallback = (
        "max_tokens_per_row=80 has no effect: rows are padded, because this model's attention does not take the mask"
    )
    assert (fallback in caplog.text) == (family == "gemma2")


def forgets_beyond(model: Any, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes masks, but its attention is cut into chunks of so many places of a row, as Llama 4's is."""
    forward = type(model.model).forward

    def chunked(self: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            chunk = torch.arange(attention_mask.shape[-1]) // positions
            same = chunk[:, None] == chunk[None, :]
            attention_mask = attention_mask.masked_fill(~same, torch.finfo(attention_mask.dtype).min)
        return forward(self, *args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", chunked)


def test_a_model_that_takes_one_pairs_mask_and_not_several_is_not_packed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model("llama")
    forgets_beyond(model, 20, monkeypatch)  # the pairs have 12, 4 and 14 tokens; two of them fit into 20 places
    assert share_prefixes(model, PAIRS, 0, "auto")
    assert pack_prompts(model, PAIRS, 0, "auto", 20)
    with caplog.at_level(logging.WARNING):
        assert chosen(model, PAIRS, 40) == "pairs share their prompt"
    assert "max_tokens_per_row=40 has no effect: this model's hidden states differ by" in caplog.text
    assert "where 3 pairs share a row" in caplog.text
    with pytest.raises(
        ValueError, match=r"prefix_sharing='on' with max_tokens_per_row=40, but .*Leave max_tokens_per_row"
    ):
        chosen(model, PAIRS, 40, "on")


def test_one_pair_that_differs_is_not_averaged_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pairs in a row, one is cut by the end of a chunk."""
    model = build_model("llama")
    monkeypatch.setitem(TOLERANCE, torch.float32, 0.4)  # on average over 30 pairs it differs by less
    pairs = [TokenizedPair.of([7, 8], [9, 10], [11, 12])] * 30
    assert pack_prompts(model, pairs, 0, "auto", 180)
    forgets_beyond(model, 6 * 30 - 2, monkeypatch)
    assert not pack_prompts(model, pairs, 0, "auto", 180)


def windowed(window: int) -> Any:
    """Attention that sees the last so many tokens, with weights under which a token more or less is plain to see."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, sliding_window=window, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()


def of_lengths(prompt: int, chosen: int, rejected: int, seed: int = 0) -> TokenizedPair:
    draw = torch.Generator().manual_seed(seed)
    return TokenizedPair.of(*(torch.randint(3, 380, (n,), generator=draw).tolist() for n in (prompt, chosen, rejected)))


def assert_own_states(model: Any, pairs: Sequence[TokenizedPair], collator: ResponseCollator) -> None:
    """What the collator's batch gives is what padded rows give."""
    batches = [ResponseBatch.from_inputs(collator(pairs)), padded_batch(pairs, 0)]
    with torch.no_grad():
        found, expected = (response_hidden(model, b.model_inputs(), b.response_index) for b in batches)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_pair_with_the_longest_sequence_decides_and_not_the_widest_row() -> None:
    """A row of 90 tokens in sequences of 50, and one of 75 with a sequence of 70: there the window shows."""
    model, widest, longest = windowed(60), of_lengths(10, 40, 40), of_lengths(10, 60, 5, seed=1)
    assert share_prefixes(model, [widest], 0, "auto")
    assert not share_prefixes(model, [widest, longest], 0, "auto")
    with pytest.raises(ValueError, match="prefix_sharing='on', but hidden states differ"):
        choose_layout(model, [widest, longest], 0, "on")
    assert grouped_collator(model, [widest, widest, longest], 0).describe() == "padded rows"


@pytest.mark.parametrize("window", [30, 200])
def test_longer_pairs_that_come_later_are_asked_about_and_padded_where_they_fail(
    window: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, short, longer = windowed(window), of_lengths(8, 6, 7), of_lengths(20, 25, 12, seed=1)
    collator = choose_layout(model, [short], 0, "auto")
    assert collator([short])["attention_mask"].dim() == 4
    assert collator([short, longer])["attention_mask"].dim() == 2, "nothing is trusted beyond what was compared"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cover(model, collator, [short, longer])
    assert_own_states(model, [short, longer], collator)
    shares = window == 200
    assert collator([short, longer])["attention_mask"].dim() == (4 if shares else 2)
    assert collator([short])["attention_mask"].dim() == 4
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (not shares)
    if said:
        assert said[0].startswith(
            "Sequences of more than 15 tokens (now 45) are not laid out like the others: hidden states"
        )
        with pytest.raises(ValueError, match=r"Sequences of more than 15 tokens \(now 50\): prefix_sharing='on'"):
            cover(model, choose_layout(model, [short], 0, "on"), [of_lengths(25, 25, 2)], "on")


def test_what_failed_is_not_asked_again_and_what_lies_between_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = windowed(30)
    asked: list[int] = []
    collator = choose_layout(model, [of_lengths(8, 6, 7)], 0, "auto")
    distance = layout_module._distance

    def counted(*arguments: Any, **options: Any) -> float:
        asked.append(1)
        return distance(*arguments, **options)

    monkeypatch.setattr(layout_module, "_distance", counted)
    for length, times in ((40, 1), (40, 1), (50, 1), (20, 2), (18, 2), (28, 3)):
        cover(model, collator, [of_lengths(length - 6, 6, 1)])
        assert len(asked) == times, length
    assert collator.trusted is not None and (collator.trusted.sequence, collator.refused.sequence) == (28, 40)


def test_wider_rows_that_come_later_are_asked_about(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Chunks count places of a row: the sequences are as long as before, and only rows of several are cut."""
    model, one, other = build_model("llama"), of_lengths(4, 5, 5), of_lengths(4, 5, 5, seed=1)
    same = [TokenizedPair.of(one.prompt_ids, other.chosen_ids, other.rejected_ids)] * 3
    forgets_beyond(model, 30, monkeypatch)
    collator = grouped_collator(model, [one, same[0]], 0)
    assert collator.group_prompts
    assert_own_states(model, [one, same[0]], collator)
    cover(model, collator, [one, *same])
    assert_own_states(model, [one, *same], collator)
    assert collator([one, *same])["attention_mask"].shape == (4, 1, 14, 14), "a row a pair"
    assert "Rows of more than 24 tokens (now 44) are not laid out like the others" in caplog.text


def test_a_reference_of_another_architecture_is_asked_too() -> None:
    pair = of_lengths(20, 25, 12)
    model = windowed(200)
    assert choose_layout(model, [pair], 0, "auto", other_models=[windowed(200), None]).share_prefixes
    assert not choose_layout(model, [pair], 0, "auto", other_models=[windowed(30)]).share_prefixes


def test_a_packed_row_is_compared_up_to_its_budget() -> None:
    """The pairs at hand leave room that others may fill."""
    pairs = [of_lengths(4, 5, 5), of_lengths(4, 6, 7), of_lengths(4, 6, 9)]
    assert [shared_length(pair) for pair in full_row(pairs, 40)] == [19, 17, 4]
    assert [shared_length(pair) for pair in full_row(pairs, 37)] == [19, 17, 1]
    assert [shared_length(pair) for pair in full_row(pairs, 100)] == [19, 17, 14], "no row is wider than all of them"
    collator = choose_layout(build_model("llama"), pairs, 0, "auto", 40)
    assert collator.trusted is not None and (collator.trusted.sequence, collator.trusted.width) == (13, 40)


def test_the_row_compared_is_full() -> None:
    def pair(length: int) -> TokenizedPair:
        return TokenizedPair.of([5] * (length - 2), [6], [7])

    def lengths(budget: int) -> list[int]:
        return [shared_length(p) for p in fullest_row([pair(n) for n in (10, 90, 30, 5, 60, 28)], budget)]

    assert lengths(100) == [90, 10]
    assert lengths(94) == [60, 30], "the longest pair would leave room for no other"
    assert lengths(10_000) == [90, 60, 30, 28, 10, 5]
    assert lengths(14) == [], "no two fit"
    assert fullest_row([TokenizedPair.of([], [5], [6]), pair(10)], 100) == [], "one has nothing to share"


def test_what_packing_cannot_do_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("llama")
    without = TokenizedPair.of([], [5, 6], [7, 8])
    with caplog.at_level(logging.WARNING):
        assert chosen(model, PAIRS, 15) == "pairs share their prompt"
        assert "max_tokens_per_row=15 has no effect: no two pairs fit into one row" in caplog.text
        assert chosen(model, [without, without], 50) == "padded rows"
        assert "rows are padded, because no pair has a prompt to share" in caplog.text
        assert "packed" in chosen(model, [*PAIRS, LONG, without], 30)
    assert "1 of 5 pairs are longer than max_tokens_per_row=30 (the longest has 47 tokens)" in caplog.text
    assert "1 of 5 pairs have no prompt; batches that hold one are padded rows" in caplog.text


def test_a_budget_without_shared_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens_per_row=64 has no effect on padded rows"):
        ResponseCollator(0, max_tokens_per_row=64)


def test_the_length_of_a_pair_is_what_the_layout_computes() -> None:
    for pair in [*PAIRS, LONG, TokenizedPair.of([], [5, 6], [7])]:
        for collator in (ResponseCollator(0), ResponseCollator(0, True), ResponseCollator(0, True, 100)):
            assert collator.tokens(pair) == collator([pair])["input_ids"].numel()
