"""A prompt with any number of responses: their order in a batch, and the flat places of their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo.batches import (
    FlatOrder,
    PromptResponses,
    ResponseBatch,
    ResponseCollator,
    TokenizedPair,
    counted_tokens,
    padded_batch,
    sequence_length,
    sequence_order,
    shared_length,
)

IDS = st.lists(st.integers(1, 30), min_size=1, max_size=6)
# Few different prompts, so that several of a batch often have the same; an empty response among others.
PROMPT = IDS | st.sampled_from([[4], [4, 7], [9] * 6])
PROMPTS = st.lists(
    st.builds(PromptResponses, PROMPT, st.lists(IDS | st.just([]), min_size=1, max_size=5)), min_size=1, max_size=6
)
LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"share_prefixes": True},
    {"share_prefixes": True, "max_tokens_per_row": 40},
    {"share_prefixes": True, "group_prompts": True},
)


def test_first_responses_come_before_second_ones() -> None:
    ragged = [PromptResponses([1], [[2], [3], [4]]), PromptResponses([5], [[6]]), PromptResponses([7], [[8], [9]])]
    assert sequence_order(ragged) == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]
    assert padded_batch(ragged, 0).target_ids.tolist() == [2, 6, 8, 3, 9, 4]
    pairs = [TokenizedPair.of([1], [2], [3])] * 3
    order = sequence_order(pairs)
    assert [order.index((p, 0)) for p in range(3)] == [0, 1, 2], "chosen of pair p is p"
    assert [order.index((p, 1)) for p in range(3)] == [3, 4, 5], "rejected of pair p is P + p"


@settings(max_examples=200, deadline=None)
@given(prompts=PROMPTS)
def test_every_layout_holds_any_number_of_responses(prompts: list[PromptResponses]) -> None:
    """In all of them a token is predicted by the same prompt and the same beginning of its response."""
    order = sequence_order(prompts)
    expected = [(s, token) for s, (p, k) in enumerate(order) for token in prompts[p].responses[k]]
    for layout in LAYOUTS:
        batch = ResponseBatch.from_inputs(ResponseCollator(0, **layout)(prompts))
        assert list(zip(batch.sequence_index.tolist(), batch.target_ids.tolist(), strict=True)) == expected
        done = [0] * len(order)
        for index, s in zip(batch.response_index.tolist(), batch.sequence_index.tolist(), strict=True):
            r, t = divmod(index, batch.input_ids.shape[1])
            mask = batch.attention_mask
            seen = mask[r, 0, t] if mask.dim() == 4 else mask[r].bool() & (torch.arange(mask.shape[1]) <= t)
            p, k = order[s]
            before = prompts[p].prompt_ids + prompts[p].responses[k][: done[s]]
            assert batch.input_ids[r][seen].tolist() == before
            done[s] += 1


@settings(max_examples=200, deadline=None)
@given(prompts=PROMPTS, data=st.data())
def test_the_places_of_a_batch_in_the_whole(prompts: list[PromptResponses], data: st.DataObject) -> None:
    """What any batch of some of the prompts says of its tokens, put to these places, is what one batch of all says."""
    order, whole = FlatOrder(prompts), padded_batch(prompts, 0)
    assert order.lengths.tolist() == torch.bincount(whole.sequence_index, minlength=len(order.sequences)).tolist()
    responses = [response for prompt in prompts for response in prompt.responses]
    assert [responses[n] for n in order.by_prompt] == [prompts[p].responses[k] for p, k in order.sequences]
    numbers = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, unique=True))
    batch = padded_batch([prompts[number] for number in numbers], 0)
    assert whole.target_ids[order.tokens_of(numbers)].equal(batch.target_ids)


def test_lengths_are_those_of_all_responses() -> None:
    prompt = PromptResponses([1, 2], [[3], [4, 5, 6], []], gaps=((), ((1, 2),), ()))
    assert shared_length(prompt) == 6
    assert sequence_length(prompt) == 5
    assert counted_tokens(prompt) == (1, 2, 0)
    assert ResponseCollator(0).tokens(prompt) == 3 * 5
    assert ResponseCollator(0, share_prefixes=True).tokens(prompt) == 6


def test_what_is_no_prompt_with_responses_is_refused() -> None:
    with pytest.raises(ValueError, match="a:3 has no response"):
        PromptResponses([1], [], "a", 3)
    with pytest.raises(ValueError, match="a:3 has 2 responses, and gaps of 1"):
        PromptResponses([1], [[2], [3]], "a", 3, gaps=(((0, 1),),))


def test_the_first_response_of_a_pair_is_chosen() -> None:
    pair = TokenizedPair.of([1], [2, 3], [4], "a", 7, chosen_gaps=((1, 2),))
    assert (pair.chosen_ids, pair.rejected_ids) == ([2, 3], [4]) == tuple(pair.responses)
    assert (pair.chosen_gaps, pair.rejected_gaps) == (((1, 2),), ())
    assert (pair.source, pair.row) == ("a", 7)
