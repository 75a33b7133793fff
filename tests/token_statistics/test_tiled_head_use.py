"""The tiled operator in use: strides, autocast, checkpointing, and what it never holds or does twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helpers.head_cases import EXTRAS, LargestTensor, gradients, make_case, use_tiles_of, weighted_sum
from tdpo import Head, linear_token_stats
from tdpo.token_statistics import learned_tokens, tiled_backward, tiles


@pytest.mark.parametrize("impl", ["tiled", "dense"])
def test_views_of_any_stride(impl: Any) -> None:
    case = make_case("bias")
    plain = linear_token_stats(*case.arguments(), extras=EXTRAS, impl=impl)
    expected = gradients(case.leaves(), linear_token_stats(*case.arguments(), extras=EXTRAS, impl=impl))

    def strided(t: Tensor) -> Tensor:
        """The same values, each axis transposed and every second entry of a larger buffer."""
        buffer = torch.empty(*(2 * n for n in reversed(t.shape)), dtype=t.dtype)
        view = buffer[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach())

    hidden, weight, bias = (strided(t).requires_grad_() for t in case.leaves())
    assert not weight.is_contiguous()
    stats = linear_token_stats(
        hidden, Head(weight, bias), strided(case.reference_hidden),
        Head(strided(case.reference_head.weight), strided(case.reference_head.bias)),  # type: ignore[arg-type]
        strided(case.targets), extras=EXTRAS, impl=impl,
    )  # fmt: skip
    for a, b in zip(vars(plain).values(), vars(stats).values(), strict=True):
        assert torch.allclose(a, b)
    for a, b in zip(expected, gradients([hidden, weight, bias], stats), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    case = make_case("all", dtype)
    leaves = case.leaves()
    plain = linear_token_stats(*case.arguments(), extras=EXTRAS)
    expected = gradients(leaves, plain)
    with torch.autocast("cpu", torch.bfloat16):
        stats = linear_token_stats(*case.arguments(), extras=EXTRAS)
        inside = gradients(leaves, stats)
    for a, b in zip([*vars(plain).values(), *expected], [*vars(stats).values(), *inside], strict=True):
        assert torch.equal(a, b)


def test_no_grad_and_checkpointing_change_nothing() -> None:
    case = make_case("bias")
    leaves = case.leaves()
    plain = linear_token_stats(*case.arguments())
    expected = gradients(leaves, plain)
    with torch.no_grad():
        quiet = linear_token_stats(*case.arguments())
    assert not quiet.forward_kl.requires_grad and torch.equal(quiet.forward_kl, plain.forward_kl)

    def run(hidden: Tensor) -> tuple[Tensor, Tensor]:
        stats = linear_token_stats(hidden, *case.arguments()[1:])
        return stats.policy_logp, stats.forward_kl

    logp, kl = checkpoint(run, case.hidden, use_reentrant=False)
    for a, b in zip(expected, gradients(leaves, replace(plain, policy_logp=logp, forward_kl=kl)), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    case = make_case()
    case.leaves()
    loss = linear_token_stats(*case.arguments()).forward_kl.square().sum()
    (first,) = torch.autograd.grad(loss, case.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    case = make_case()
    case.leaves()
    stats = linear_token_stats(*case.arguments())
    with torch.no_grad():
        case.head.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weighted_sum(stats).backward()


def test_nothing_of_the_size_of_the_logits_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """N = 200, V = 3000, tiles of 100: [N, V] is 600,000, the head 24,000, a tile 20,000 entries."""
    use_tiles_of(100, monkeypatch)
    hidden, weight = torch.randn(200, 8, requires_grad=True), torch.randn(3000, 8, requires_grad=True)
    bias, targets = torch.randn(3000, requires_grad=True), torch.randint(0, 3000, (200,))
    head, reference = Head(weight, bias, softcap=5.0), Head(torch.randn(3000, 8), torch.randn(3000))
    largest = {}
    for impl in ("tiled", "dense"):
        with LargestTensor() as watch:
            stats = linear_token_stats(hidden, head, torch.randn(200, 8), reference, targets, extras=EXTRAS, impl=impl)
            weighted_sum(stats).backward()
        largest[impl] = watch.entries
    assert largest == {"tiled": weight.numel(), "dense": 200 * 3000}


def test_long_batches_narrow_the_tile() -> None:
    widths = {n: next(iter(tiles.tile_bounds(n, 10**6)))[1] for n in (0, 1, 4096, 8192, 10**6)}
    assert widths == {0: 1024, 1: 1024, 4096: 1024, 8192: 1024, 10**6: 512}


@pytest.mark.parametrize(("named", "looked_at"), [(True, True), (True, False), (False, True)])
def test_the_reference_is_recomputed_only_where_its_kl_has_a_gradient(
    named: bool, looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the caller has named the tokens, and where it is no wait also as the gradients say."""
    case = make_case()
    leaves = case.leaves()
    monkeypatch.setattr(learned_tokens, "READ_FREELY", {"cpu"} if looked_at else set())
    learned = {"forward_kl": range(1, 4)} if named else None
    stats = linear_token_stats(*case.arguments(), extras=["reverse_kl"], learned_tokens=learned)
    tokens: dict[int, list[int]] = {3: [], 5: []}  # by size of hidden state: 3 the policy, 5 the reference
    original = tiled_backward.tile_logits

    def recorded(hidden: Tensor, *rest: Any) -> Tensor:
        tokens[hidden.shape[1]].append(hidden.shape[0])
        return original(hidden, *rest)

    monkeypatch.setattr(tiled_backward, "tile_logits", recorded)
    loss = stats.policy_logp.sum() + stats.forward_kl[1:3].sum()
    ours = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert tokens == {3: [6], 5: [2 if looked_at else 3]}
    torch.autograd.grad(stats.policy_logp.sum(), leaves)
    assert tokens == {3: [6, 6], 5: tokens[5][:1]}, "KLs that are no part of the loss need no reference"
    dense = linear_token_stats(*case.arguments(), impl="dense")
    theirs = torch.autograd.grad(dense.policy_logp.sum() + dense.forward_kl[1:3].sum(), leaves)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_reverse_kl_of_infinity_harms_no_token_whose_reverse_kl_has_no_gradient() -> None:
    """Also where it lies between two tokens that have one, so that it is walked over."""
    case = make_case("bias")
    case.reference_head.bias[8] = -torch.inf  # type: ignore[index]
    case.hidden.requires_grad_()
    stats = linear_token_stats(*case.arguments(), extras=EXTRAS)
    assert (stats.reverse_kl == torch.inf).all()  # type: ignore[union-attr]
    loss = stats.forward_kl.sum() + stats.reverse_kl[[1, 4]].sum()  # type: ignore[index]
    (gradient,) = torch.autograd.grad(loss, case.hidden)
    assert gradient[[0, 2, 3, 5]].isfinite().all() and not gradient[[1, 4]].isfinite().any()
