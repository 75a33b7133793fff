"""Which tokens' KLs a loss learns from: those in which autograd finds a gradient, and for TDPO2 none of the chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdpo import linear_token_stats, score_pairs
from tdpo.batches import ResponseBatch, TokenizedPair, padded_batch
from tdpo.kl_choices import KLTerm
from tdpo.methods import METHODS
from tdpo.scoring.configured_loss import KL_NAMES, configured_loss
from tdpo.token_statistics import Head

TERMS = [None, *(KLTerm(direction, on) for direction in KL_NAMES for on in ("chosen", "rejected", "both"))]  # type: ignore[arg-type]
PAIRS = [TokenizedPair.of([3, 4], [5, 6, 7], [8]), TokenizedPair.of([3], [], [9, 5, 4, 6])]


@pytest.mark.parametrize("name", [key for key, method in METHODS.items() if method.learns_from == "pairs"])
def test_a_loss_names_the_tokens_whose_kls_have_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    batch = ResponseBatch.from_inputs(padded_batch(PAIRS, 0).as_inputs())
    index, count = batch.sequence_index, len(batch.target_ids)
    assert batch.counts.first_tokens == 3 and count == 8
    hidden, head, reference = (torch.randn(n, 4).double() for n in (count, 23, count))
    for term in TERMS:
        if name == "kl" and term is None:
            continue
        beta, gamma = (None if name in ("sft", "kl") else 0.3), (1.0 if name == "simpo" else None)
        loss = configured_loss(name, beta, 0.5 if name == "tdpo2" else None, 0.0, term, gamma)
        stats: Any = linear_token_stats(
            hidden.requires_grad_(),
            Head(head),
            reference,
            Head(head),
            batch.target_ids,
            extras=loss.extras,
            impl="dense",
        )
        fields = {n: getattr(stats, n) for n in KL_NAMES.values() if getattr(stats, n, None) is not None}
        value = loss(stats, score_pairs(stats, index, 2), index, 2).per_pair.sum()
        gradients = torch.autograd.grad(value, list(fields.values()), allow_unused=True)
        found = {n: [] if g is None else g.nonzero()[:, 0].tolist() for n, g in zip(fields, gradients, strict=True)}
        assert {n: list(tokens) for n, tokens in loss.learned_tokens(batch).items()} == found, term


def test_tdpo2_learns_from_the_forward_kl_of_rejected_tokens() -> None:
    batch = padded_batch(PAIRS, 0)
    with torch.no_grad():  # as an evaluation asks
        named = configured_loss("tdpo2", 0.1, 0.5, 0.0).learned_tokens(batch)
    assert named == {"forward_kl": range(3, 8), "reverse_kl": range(0)}
