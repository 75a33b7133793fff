"""The tiled operator equals the dense definition, in values and gradients, and never holds [N, V]."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import oracle
from helpers.head_cases import EXTRAS, KINDS, differentiable, gradients, make_case, use_tiles_of, weighted_sum
from tdpo import Head, TokenStats, linear_token_stats

# One tile wider than the vocabulary, exactly one, a ragged last one, tiles of a single entry.
WIDTHS = [64, 23, 5, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_oracle_and_the_dense_gradients(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(width, monkeypatch)
    case = make_case(kind)
    leaves = case.leaves()
    stats = linear_token_stats(*case.arguments(), extras=EXTRAS, impl="tiled")
    dense = linear_token_stats(*case.arguments(), extras=EXTRAS, impl="dense")
    head, reference = case.head, case.reference_head
    expected = oracle.statistics(
        oracle.head_logits(case.hidden, head.weight, head.bias, head.scale, head.softcap),
        oracle.head_logits(case.reference_hidden, reference.weight, reference.bias, reference.scale, reference.softcap),
        case.targets,
    )
    for name, value in vars(stats).items():
        np.testing.assert_allclose(value.detach().numpy(), getattr(expected, name), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(leaves, stats), gradients(leaves, dense), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("impl", ["tiled", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_float64(kind: str, impl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(5, monkeypatch)
    case = make_case(kind, tokens=4)

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        head = replace(case.head, weight=weight, bias=bias)
        stats = linear_token_stats(hidden, head, *case.arguments()[2:], extras=EXTRAS, impl=impl)
        return tuple(differentiable(stats))

    assert torch.autograd.gradcheck(outputs, tuple(case.leaves()))


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", "hidden+bias", "nothing"])
def test_only_what_is_trained_gets_a_gradient(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(5, monkeypatch)
    case = make_case("bias")
    tensors = {"hidden": case.hidden, "weight": case.head.weight, "bias": case.head.bias}
    for name in tensors.keys() & set(trained.split("+")):
        tensors[name].requires_grad_()  # type: ignore[union-attr]
    case.reference_hidden.requires_grad_()
    case.reference_head.weight.requires_grad_()
    for extras in ((), EXTRAS):
        stats = linear_token_stats(*case.arguments(), extras=extras)
        assert not stats.reference_logp.requires_grad
        assert stats.forward_kl.requires_grad == (trained != "nothing")
        if trained != "nothing":
            weighted_sum(stats).backward()
    assert case.reference_hidden.grad is None and case.reference_head.weight.grad is None
    for name, tensor in tensors.items():
        assert (tensor.grad is not None) == (name in trained.split("+")), name  # type: ignore[union-attr]


def test_tied_embeddings_collect_both_gradients() -> None:
    tied, ids = torch.randn(23, 4, dtype=torch.float64, requires_grad=True), torch.tensor([1, 1, 7, 22])
    reference = torch.randn(4, 4).double()

    def loss(impl: Any) -> Tensor:
        hidden = torch.tanh(torch.nn.functional.embedding(ids, tied))
        head = Head(tied)
        return weighted_sum(linear_token_stats(hidden, head, reference, head, ids, impl=impl))

    (ours,) = torch.autograd.grad(loss("tiled"), tied)
    (theirs,) = torch.autograd.grad(loss("dense"), tied)
    assert torch.allclose(ours, theirs)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.integers(2, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_any_shape(tokens: int, vocabulary: int, size: int, reference_size: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    hidden, weight = draw(tokens, size).requires_grad_(), draw(vocabulary, size).requires_grad_()
    reference = draw(tokens, reference_size), Head(draw(vocabulary, reference_size))
    targets = torch.randint(0, vocabulary, (tokens,), generator=make)
    with pytest.MonkeyPatch.context() as patch:
        use_tiles_of(7, patch)
        both = [
            linear_token_stats(hidden, Head(weight), *reference, targets, extras=EXTRAS, impl=impl)
            for impl in ("tiled", "dense")
        ]
        for ours, theirs in zip(*(vars(stats).values() for stats in both), strict=True):
            assert ours.shape == (tokens,)
            assert torch.allclose(ours, theirs)
        grads = [gradients([hidden, weight], stats) for stats in both]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs)
    assert (both[0].forward_kl > -1e-9).all() and (both[0].reverse_kl > -1e-9).all()  # type: ignore[operator]


def test_equal_models_have_no_divergence() -> None:
    case = make_case("all", torch.float32)
    stats = linear_token_stats(case.hidden, case.head, case.hidden, case.head, case.targets, extras=EXTRAS)
    assert torch.equal(stats.forward_kl, torch.zeros(6))
    assert torch.equal(stats.reverse_kl, torch.zeros(6))  # type: ignore[arg-type]
    assert torch.equal(stats.policy_logp, stats.reference_logp)


@pytest.mark.parametrize("width", [64, 4])
def test_bias_that_masks_entries(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles and single entries are masked in both models, as padded vocabularies are."""
    use_tiles_of(width, monkeypatch)
    case = make_case("bias", torch.float32)
    masked = [*range(8), 13]  # with tiles of 4 the first two entirely, then one inside a tile
    kept = [v for v in range(23) if v not in masked]
    for head in (case.head, case.reference_head):
        head.bias[masked] = -math.inf  # type: ignore[index]
    case.targets = torch.tensor([kept[i] for i in (0, 5, 9, 9, 11, 13)])
    leaves = case.leaves()[:2]
    stats = linear_token_stats(*case.arguments(), extras=EXTRAS)

    small = [
        Head(h.weight[kept], h.bias[kept])  # type: ignore[index]
        for h in (case.head, case.reference_head)
    ]
    new_targets = torch.tensor([kept.index(t) for t in case.targets.tolist()])
    removed = linear_token_stats(case.hidden, small[0], case.reference_hidden, small[1], new_targets, extras=EXTRAS)
    for ours, theirs in zip(vars(stats).values(), vars(removed).values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(gradients(leaves, stats), gradients(leaves, removed), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("low_at", [3, 20], ids=["first tile", "last tile"])
@pytest.mark.parametrize("width", [64, 4])
def test_support_that_one_model_lacks(low_at: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """+inf and never NaN, also where the other model's weight there underflows; masked rows harm no others."""
    use_tiles_of(width, monkeypatch)
    case = make_case("bias", torch.float32)
    case.head.bias[low_at], case.reference_head.bias[low_at] = -math.inf, -2000.0  # type: ignore[index]
    leaves = case.leaves()[:2]
    stats = linear_token_stats(*case.arguments(), extras=EXTRAS)
    assert (stats.forward_kl == math.inf).all()
    assert stats.reverse_kl.isfinite().all()  # type: ignore[union-attr]
    swapped = linear_token_stats(
        case.reference_hidden,
        case.reference_head,
        case.hidden.detach(),
        case.head,
        case.targets,
        extras=EXTRAS,
    )
    assert (swapped.reverse_kl == math.inf).all() and swapped.forward_kl.isfinite().all()  # type: ignore[union-attr]
    unaffected = replace(stats, forward_kl=stats.policy_logp, reverse_kl=None)
    assert all(g.isfinite().all() for g in gradients(leaves, unaffected))


def test_a_reference_logit_a_thousand_below_the_maximum() -> None:
    case = make_case("bias", torch.float32)
    case.reference_head.bias[5] = -1000.0  # type: ignore[index]
    stats = linear_token_stats(*case.arguments())
    dense = linear_token_stats(*case.arguments(), impl="dense")
    assert stats.forward_kl.isfinite().all()
    assert torch.allclose(stats.forward_kl, dense.forward_kl, rtol=1e-5)
    assert stats.reference_logp[3] < -900


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    case = make_case("bias", torch.float32)
    before = linear_token_stats(*case.arguments(), extras=EXTRAS)
    case.head.bias.add_(50.0)  # type: ignore[union-attr]
    case.reference_head.bias.sub_(30.0)  # type: ignore[union-attr]
    after = linear_token_stats(*case.arguments(), extras=EXTRAS)
    for a, b in zip(vars(before).values(), vars(after).values(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_tokens_are_independent() -> None:
    """Permuted tokens permute the outputs; removed tokens and tokens with weight zero are the same thing."""
    case = make_case("all")
    leaves = case.leaves()
    stats = linear_token_stats(*case.arguments(), extras=EXTRAS)

    def at(rows: list[int]) -> TokenStats:
        tokens = case.hidden[rows], case.head, case.reference_hidden[rows], case.reference_head
        return linear_token_stats(*tokens, case.targets[rows], extras=EXTRAS)

    for rows in ([5, 3, 1, 0, 2, 4], [4, 1], [2], []):
        chosen = TokenStats(**{name: value[rows] for name, value in vars(stats).items()})
        for a, b in zip(vars(chosen).values(), vars(at(rows)).values(), strict=True):
            assert torch.allclose(a, b)
        for a, b in zip(gradients(leaves, chosen), gradients(leaves, at(rows)), strict=True):
            assert torch.allclose(a, b)
        stats = linear_token_stats(*case.arguments(), extras=EXTRAS)
