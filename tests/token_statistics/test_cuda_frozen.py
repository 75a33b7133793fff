"""The frozen head's kernels equal the float64 definition, in values and gradients, in every branch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.head_cases import EXTRAS
from helpers.kernel_cases import (
    DEVICE,
    DTYPES,
    KernelCase,
    assert_close,
    frozen_case,
    kernels,  # noqa: F401 - a fixture
    needs_triton,
    quiet,
    relative_difference,
    use_tiles_of,
    without_kernels,
)
from tdpo import Head, ReferenceSummary, TokenStats, frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.token_statistics.cuda import choice

pytestmark = [needs_triton, quiet, pytest.mark.usefixtures("kernels")]

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "bias, scale": {"bias": True, "scale": -1.7}}


def both(case: KernelCase, **options: Any) -> TokenStats:
    summary = summarize_reference(case.reference, case.head, case.targets)
    return frozen_head_token_stats(case.hidden, case.head, summary, case.targets, **options)


def exactly(case: KernelCase) -> TokenStats:
    return linear_token_stats(*case.arguments(), extras=EXTRAS, impl="dense")


def gradient(hidden: Tensor, stats: TokenStats) -> Tensor:
    """Of a loss that gives both statistics of every token their own weight."""
    outputs = torch.stack([stats.policy_logp, stats.forward_kl])
    weights = torch.linspace(-1, 2, outputs.numel(), device=hidden.device).view_as(outputs).to(outputs.dtype)
    return torch.autograd.grad((weights * outputs).sum(), hidden)[0]


def reverse_kl_gradient(hidden: Tensor, stats: TokenStats) -> Tensor:
    """A walk of its own computes it, of both models' tiles."""
    assert stats.reverse_kl is not None
    return torch.autograd.grad(stats.reverse_kl.sum(), hidden, retain_graph=True)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(dtype: torch.dtype, kind: str) -> None:
    case = frozen_case(dtype, **KINDS[kind])
    stats, wide = both(replace(case, hidden=case.hidden.requires_grad_()), extras=EXTRAS), case.wide()
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert_close(stats, exact)
    assert not stats.policy_entropy.requires_grad  # type: ignore[union-attr]
    for of in (reverse_kl_gradient, gradient):
        ours = of(case.hidden, stats)
        assert ours.dtype == dtype
        assert relative_difference(ours, of(wide.hidden, exact)) < max(3e-6, torch.finfo(dtype).eps)


@pytest.mark.parametrize(("width", "block"), [(64, 16), (16, 16), (32, 8)])
def test_tiles_and_blocks_of_any_width(width: int, block: int, kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One tile with a ragged block, several tiles of a block, several of several."""
    use_tiles_of(width, block, kernels)
    case = frozen_case(torch.bfloat16, tokens=2, vocabulary=45, bias=True)
    assert_close(both(case, extras=EXTRAS), exactly(case.wide()))


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4), st.integers(2, 50), st.integers(1, 9), st.sampled_from(DTYPES), st.integers(0, 99))
def test_any_shape(tokens: int, vocabulary: int, size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    head = Head(torch.randn(vocabulary, size).to(dtype).to(DEVICE))
    policy, reference = torch.randn(2, tokens, size).to(dtype).to(DEVICE)
    case = KernelCase(policy, head, reference, head, torch.randint(0, vocabulary, (tokens,)).to(DEVICE))
    case.hidden.requires_grad_()
    stats = both(case)
    assert stats.forward_kl.shape == (tokens,)
    assert_close(stats, exactly(case.wide()))
    assert gradient(case.hidden, stats).shape == (tokens, size)


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one(tokens: int) -> None:
    case = frozen_case(torch.float32, tokens, bias=True)
    wide = case.wide()
    stats = both(replace(case, hidden=case.hidden.requires_grad_()), extras=EXTRAS)
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert_close(stats, exact)
    for of in (reverse_kl_gradient, gradient):
        ours, right = of(case.hidden, stats), of(wide.hidden, exact)
        assert ours.shape == (tokens, 5) and relative_difference(ours, right) < 3e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_models_have_exactly_no_divergence(dtype: torch.dtype) -> None:
    """Although the summary's walk does not know the scale of a row, and the policy's starts at the right one."""
    case = frozen_case(dtype, vocabulary=70, bias=True, scale=2.0)
    case.reference[1] *= 1e-3  # e·h far smaller than log Z, so that their difference loses bits of it
    stats = both(replace(case, hidden=case.reference), extras=EXTRAS)
    assert (stats.forward_kl == 0).all()
    assert stats.reverse_kl.abs().max() < 1e-12  # type: ignore[union-attr]
    assert torch.equal(stats.policy_logp, stats.reference_logp)


@pytest.mark.parametrize("nats", [12.0, 60.0, 100.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_policy_far_from_its_reference(dtype: torch.dtype, nats: float) -> None:
    """The policy's likeliest token in the last tile is `nats` above the reference's: its weights leave the scale.

    Some 6 nats above the scale leave float16's bounds, 44 those of a sum, 88 float32 altogether. The other token stays
    where it was.
    A frozen head's reverse KL is a measurement through E_p[W], whose weights have 17 bits: it is off by 1e-5 of the
    distance where the policy's likeliest tokens are not the reference's.
    """
    case = frozen_case(dtype, tokens=2, size=2, vocabulary=45)
    case.head.weight[40] = torch.tensor([0.0, 4.0])
    case.reference[:, 1] = 0.0
    case.hidden = case.reference.clone()
    case.hidden[0, 1] = nats / 4
    case.hidden.requires_grad_()
    stats, wide = both(case, extras=EXTRAS), case.wide()
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert stats.forward_kl[0] > 0.8 * nats - 5
    assert_close(stats, exact, reverse=1e-5 * nats)
    room = {"rtol": torch.finfo(dtype).eps, "atol": 4 * 1e-5 * nats}  # exact values fall to 1e-55
    ours, right = reverse_kl_gradient(case.hidden, stats), reverse_kl_gradient(wide.hidden, exact)
    assert torch.allclose(ours.double(), right, **room)
    assert relative_difference(gradient(case.hidden, stats), gradient(wide.hidden, exact)) < max(
        2e-6, torch.finfo(dtype).eps
    )


def test_a_scale_that_rises_in_every_tile() -> None:
    """Logits that grow by 80 nats a tile: what was gathered shrinks each time, the entropy's sum with it."""
    case = frozen_case(torch.bfloat16, tokens=2, size=2, vocabulary=96)
    case.head.weight[:, 1] = torch.arange(96).to(DEVICE) // 32 * 80
    case.head.weight[:, 0] = torch.randn(96).to(DEVICE)
    case.reference[:, 1], case.hidden[:, 1] = 0.0, 1.0
    case.reference[0, 1] = 1.0
    assert_close(both(case, extras=EXTRAS), exactly(case.wide()), reverse=1e-5 * 160)


def test_a_bias_that_masks_entries() -> None:
    """A whole tile, single entries, and most of the likeliest: 0 where the probability is 0, never NaN."""
    case = frozen_case(torch.bfloat16, vocabulary=80, bias=True)
    masked = [*range(32, 64), 3, 70]
    kept = [v for v in range(80) if v not in masked]
    case.head.bias[masked] = -math.inf  # type: ignore[index]
    case.targets = torch.tensor([kept[0], kept[20], kept[-1]]).to(DEVICE)
    case.hidden.requires_grad_()
    stats = both(case, extras=EXTRAS)
    small = Head(case.head.weight[kept], case.head.bias[kept])  # type: ignore[index]
    removed = KernelCase(case.hidden.detach(), small, case.reference, small, torch.tensor([0, 20, 45]).to(DEVICE))
    wide = removed.wide()
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert_close(stats, exact)
    for of in (reverse_kl_gradient, gradient):
        assert relative_difference(of(case.hidden, stats), of(wide.hidden, exact)) < 0.01
    own = both(replace(case, targets=torch.full((3,), 3, device=DEVICE)))
    assert (own.policy_logp == -math.inf).all() and own.forward_kl.isfinite().all()


def test_fewer_entries_than_are_corrected() -> None:
    case = frozen_case(torch.bfloat16, vocabulary=40, bias=True)
    case.head.bias[4:] = -math.inf  # type: ignore[index]
    case.targets = case.targets % 4
    stats = both(case, extras=EXTRAS)
    assert all(value.isfinite().all() for value in vars(stats).values())
    assert_close(
        both(frozen_case(torch.bfloat16, vocabulary=5)), exactly(frozen_case(torch.bfloat16, vocabulary=5).wide())
    )


def test_a_summary_that_names_no_likeliest_tokens() -> None:
    case = frozen_case(torch.float32)
    summary = replace(summarize_reference(case.reference, case.head, case.targets), likeliest=None)
    stats = frozen_head_token_stats(case.hidden, case.head, summary, case.targets, extras=EXTRAS)
    assert_close(stats, exactly(case.wide()), 1e-5)


def test_nan_stays_nan() -> None:
    """A diverged model is not to look well; its neighbours are not to suffer."""
    case = frozen_case(torch.bfloat16)
    clean = both(case)
    case.hidden[1, 0] = math.nan
    stats = both(case)
    for value, before in ((stats.policy_logp, clean.policy_logp), (stats.forward_kl, clean.forward_kl)):
        assert value[1].isnan() and torch.equal(value[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("order", ["neighbours", "scattered"])
def test_the_likeliest_are_found_wherever_they_stand(order: str, kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Four of 75, in tiles of eight groups: side by side in one or two groups, or each in another."""
    from tdpo.token_statistics.cuda import frozen_walk

    kernels.setattr(frozen_walk, "LIKELIEST", 4)
    kernels.setattr(frozen_walk, "GROUP", 4)
    case = frozen_case(torch.bfloat16, tokens=2, vocabulary=75, bias=True)
    case.head.weight[:] = 0
    heights = torch.randn(75).sort().values
    places = torch.randperm(75) if order == "scattered" else torch.arange(75).roll(20)
    case.head.bias[:] = heights[places].to(DEVICE)  # type: ignore[index]
    summary = summarize_reference(case.reference, case.head, case.targets)
    expected = case.head.bias.topk(4).indices.int()  # type: ignore[union-attr]
    assert torch.equal(summary.likeliest, expected.expand(2, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_product_rounds_off_the_likeliest_is_put_back(
    dtype: torch.dtype,
    kernels: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """Logits of 8 bits, over a vocabulary of which every entry is corrected: log Z, entropy, both KLs and E[W]."""
    from tdpo.token_statistics.cuda import products

    original = products.multiply
    kernels.setattr(products, "multiply", lambda a, b, out: out.copy_(original(a, b, out).bfloat16()))
    case = frozen_case(dtype, tokens=2, vocabulary=12, bias=True, scale=2.0)
    case.hidden.requires_grad_()
    stats, wide = both(case, extras=EXTRAS), case.wide()
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert_close(stats, exact)
    assert relative_difference(gradient(case.hidden, stats), gradient(wide.hidden, exact)) < max(
        3e-6, torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_twelve_nats_below_the_largest_count(dtype: torch.dtype) -> None:
    """In float16 they would be subnormal. A large vocabulary holds much of its probability in such entries."""
    torch.manual_seed(1)
    heights = torch.cat([torch.zeros(1), -12 + 0.5 * torch.randn(95)])
    weight = torch.cat([torch.ones(1), 900 + 99 * torch.rand(95)])[:, None].to(dtype)
    head, hidden = Head(weight.to(DEVICE), heights.to(DEVICE)), torch.zeros(1, 1, dtype=dtype, device=DEVICE)
    summary = summarize_reference(hidden, head, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    exact = heights.double().softmax(0) @ weight[:, 0].double()
    assert summary.expected_weight.item() == pytest.approx(exact.item(), rel=6e-6)


def test_the_summary_is_that_of_the_plain_walk(kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A cache that one machine wrote is read by another: each field, and statistics across the two."""
    case = frozen_case(torch.bfloat16, vocabulary=70, bias=True, scale=0.4)
    summary = summarize_reference(case.reference, case.head, case.targets)
    stats = frozen_head_token_stats(case.hidden, case.head, summary, case.targets)
    without_kernels(kernels)
    plain = summarize_reference(case.reference, case.head, case.targets)
    for name, value in vars(plain).items():
        mine = getattr(summary, name)
        assert mine.dtype == value.dtype and mine.shape == value.shape, name
        if name != "likeliest":
            assert torch.allclose(mine.double(), value.double(), rtol=1e-6, atol=1e-6), name
    mixed = frozen_head_token_stats(case.hidden, case.head, summary, case.targets)
    assert torch.allclose(mixed.forward_kl, stats.forward_kl, rtol=1e-5, atol=1e-6)


def test_the_same_bits_twice() -> None:
    case = frozen_case(torch.bfloat16, bias=True)
    case.hidden.requires_grad_()
    first, second = both(case, extras=EXTRAS), both(case, extras=EXTRAS)
    for a, b in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(gradient(case.hidden, first), gradient(case.hidden, second))


def test_views_of_any_stride() -> None:
    """Of the targets too, with and without likeliest tokens beside them."""
    case = frozen_case(torch.bfloat16, bias=True)
    expected = both(case, extras=EXTRAS)
    transposed = Head(case.head.weight.mT.contiguous().mT, torch.stack([case.head.bias] * 2, dim=1)[:, 0])  # type: ignore[list-item]
    hidden, reference = (t.mT.contiguous().mT for t in (case.hidden, case.reference))
    assert not (transposed.weight.is_contiguous() or hidden.is_contiguous() or transposed.bias.is_contiguous())  # type: ignore[union-attr]
    targets = torch.stack([case.targets, torch.zeros_like(case.targets)], dim=1)[:, 0]
    assert not targets.is_contiguous()
    views = KernelCase(hidden, transposed, reference, transposed, targets)
    summary = summarize_reference(reference, transposed, targets)
    unnamed = frozen_head_token_stats(hidden, transposed, replace(summary, likeliest=None), targets, extras=EXTRAS)
    for stats in (both(views, extras=EXTRAS), unnamed):
        for a, b in zip(vars(expected).values(), vars(stats).values(), strict=True):
            assert torch.allclose(a, b, atol=1e-5 if stats is unnamed else 1e-6)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_what_a_linear_would(weight_dtype: torch.dtype) -> None:
    """Float32 hidden states are rounded once, of policy and reference alike; the gradient comes back in float32."""
    case = frozen_case(torch.float32, vocabulary=70, scale=3.0)
    case.head = Head(case.head.weight.to(weight_dtype), scale=3.0)
    hidden = case.hidden.requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        stats = both(case, extras=EXTRAS)
        same = both(replace(case, hidden=case.reference), extras=EXTRAS)
    ours = gradient(hidden, stats)
    assert ours.dtype == torch.float32
    rounded = frozen_case(torch.float32)
    rounded.hidden, rounded.reference = (t.detach().bfloat16() for t in (case.hidden, case.reference))
    rounded.head = rounded.reference_head = Head(case.head.weight.bfloat16(), scale=3.0)
    rounded.targets = case.targets
    wide = rounded.wide()
    exact = exactly(replace(wide, hidden=wide.hidden.requires_grad_()))
    assert_close(stats, exact, 1e-5)
    assert relative_difference(ours, gradient(wide.hidden, exact)) < 0.01
    assert (same.forward_kl == 0).all() and same.reverse_kl.abs().max() < 1e-12  # type: ignore[union-attr]


def test_the_operands_of_every_pair_of_dtypes() -> None:
    assert choice.operand_dtype(torch.ones(1).bfloat16(), torch.ones(1)) == torch.float32
    assert choice.operand_dtype(torch.ones(1).half(), torch.ones(1).half()) == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert choice.operand_dtype(torch.ones(1), torch.ones(1)) == torch.bfloat16


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("hidden_dtype", DTYPES)
def test_mixed_operands(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    case = frozen_case(hidden_dtype, tokens=2, size=3)
    case.head = case.reference_head = Head(case.head.weight.to(weight_dtype))
    assert_close(both(case), exactly(case.wide()))


def test_tokens_are_independent() -> None:
    """Any selection of a summary's rows is the summary of those tokens: a cache may be read in any order."""
    case = frozen_case(torch.bfloat16, tokens=4)
    summary = summarize_reference(case.reference, case.head, case.targets)
    stats = frozen_head_token_stats(case.hidden, case.head, summary, case.targets)
    for rows in ([3, 0], [1], []):
        part = ReferenceSummary(*(tensor[rows] for tensor in vars(summary).values()))
        some = frozen_head_token_stats(case.hidden[rows], case.head, part, case.targets[rows])
        assert torch.allclose(some.forward_kl, stats.forward_kl[rows], atol=1e-6)
        assert torch.allclose(some.policy_logp, stats.policy_logp[rows], atol=1e-6)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    case = frozen_case(torch.float32, tokens=1)
    loss = both(replace(case, hidden=case.hidden.requires_grad_())).forward_kl.square().sum()
    (first,) = torch.autograd.grad(loss, case.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
