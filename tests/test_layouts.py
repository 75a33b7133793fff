"""Pairs that share their prompt's computation: the same statistics and gradients as padded rows, or the fallback."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import FAMILIES, build_model
from tdpo import score_pairs, tdpo2_loss
from tdpo.batches import PairBatch, PairCollator, TokenizedPair, padded_batch, shared_prefix_batch
from tdpo.models import reference_for
from tdpo.training.layout import share_prefixes
from tdpo.training.statistics import PolicyStatistics

# Different lengths everywhere, a one-token response, a one-token prompt; short enough for Gemma's window of 16.
PAIRS = [
    TokenizedPair([5, 6, 7, 8, 9], [20, 21, 22, 1], [30, 31, 1]),
    TokenizedPair([11], [12, 1], [13]),
    TokenizedPair([40, 41, 42], [50, 51, 52, 53, 54, 1], [55, 56, 57, 58, 1]),
]
LONG = TokenizedPair(list(range(5, 45)), [20, 21, 22, 1], [30, 31, 1])


def loss_and_gradients(model: Any, reference: Any, batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    stats = PolicyStatistics.of(model, reference)(model, batch)
    scores = score_pairs(stats, batch.sequence_index, batch.num_pairs)
    per_pair = tdpo2_loss(scores, beta=0.5, alpha=0.7).per_pair
    per_pair.sum().backward()
    return per_pair.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_give_one_loss_and_one_gradient(family: str) -> None:
    model = build_model(family)
    reference = reference_for(model, build_model(family, seed=1))
    padded, padded_grads = loss_and_gradients(model, reference, padded_batch(PAIRS, 0))
    shared, shared_grads = loss_and_gradients(model, reference, shared_prefix_batch(PAIRS, 0))
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
    other = [TokenizedPair(p.prompt_ids, [60] * len(p.chosen_ids), p.rejected_ids) for p in PAIRS]
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
    collator = PairCollator(0, share_prefixes=True)
    inputs = collator([TokenizedPair([], [5, 6], [7, 8]), PAIRS[0]])
    assert inputs["attention_mask"].dim() == 2
    assert collator(PAIRS)["attention_mask"].dim() == 4
