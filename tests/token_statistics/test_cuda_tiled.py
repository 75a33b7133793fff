"""The any-head kernels equal the float64 definition, in values and gradients, in every branch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import head_cases
from helpers.head_cases import gradients, weighted_sum
from helpers.kernel_cases import (
    DEVICE,
    DTYPES,
    KernelCase,
    any_case,
    assert_close,
    frozen_case,
    kernels,  # noqa: F401 - a fixture
    needs_triton,
    quiet,
    relative_difference,
    use_tiles_of,
)
from tdpo import Head, TokenStats, linear_token_stats
from tdpo.token_statistics import JensenShannon, MixtureTokenStats
from tdpo.token_statistics.cuda import products

pytestmark = [needs_triton, quiet, pytest.mark.usefixtures("kernels")]

EXTRAS = (*head_cases.EXTRAS, JensenShannon(0.3))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": -1.7, "softcap": 2.5},
}


def ours(case: KernelCase, **options: Any) -> TokenStats:
    return linear_token_stats(*case.arguments(), **{"extras": EXTRAS, **options})


def exactly(case: KernelCase, **options: Any) -> TokenStats:
    return linear_token_stats(*case.arguments(), extras=options.pop("extras", EXTRAS), impl="dense")


def mixture_of(stats: TokenStats) -> Tensor:
    assert isinstance(stats, MixtureTokenStats) and stats.jensen_shannon is not None
    return stats.jensen_shannon


def assert_gradients(mine: tuple[Tensor, ...], right: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(mine, right, strict=True):
        assert relative_difference(a, b) < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(dtype: torch.dtype, kind: str) -> None:
    case = any_case(dtype, **KINDS[kind])
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case), exactly(wide)
    assert_close(stats, exact)
    assert not stats.reference_logp.requires_grad
    mine = gradients(leaves, stats)
    assert [g.dtype for g in mine] == [leaf.dtype for leaf in leaves]
    assert_gradients(mine, gradients(wide_leaves, exact), max(3e-6, 2 * torch.finfo(dtype).eps))


@pytest.mark.parametrize("extras", [(), ("reverse_kl",), ("policy_entropy",), (JensenShannon(0.9),)], ids=str)
def test_each_extra_alone(extras: tuple[Any, ...]) -> None:
    case = any_case(torch.float32, bias=True)
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case, extras=extras), exactly(wide, extras=extras)
    assert_close(stats, exact)
    assert_gradients(gradients(leaves, stats), gradients(wide_leaves, exact), 3e-6)
    assert (stats.reverse_kl is None) == ("reverse_kl" not in extras)
    assert (stats.policy_entropy is None) == ("policy_entropy" not in extras)
    assert type(stats) is type(exact), "a type of its own where there is a mixture"


@pytest.mark.parametrize(("width", "block"), [(64, 16), (16, 16), (32, 8)])
def test_tiles_and_blocks_of_any_width(width: int, block: int, kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    use_tiles_of(width, block, kernels)
    case = any_case(torch.float32, tokens=2, vocabulary=45, bias=True)
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case), exactly(wide)
    assert_close(stats, exact)
    assert_gradients(gradients(leaves, stats), gradients(wide_leaves, exact), 3e-6)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 4), st.integers(1, 50), st.integers(1, 9), st.integers(1, 9), st.sampled_from(DTYPES),
    st.integers(0, 99),
)  # fmt: skip
def test_any_shape(tokens: int, vocabulary: int, size: int, reference_size: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    case = any_case(dtype, tokens, vocabulary, size, reference_size)
    leaves, wide = case.leaves(), case.wide()
    stats = ours(case)
    assert stats.forward_kl.shape == (tokens,)
    assert_close(stats, exactly(wide))
    assert [g.shape for g in gradients(leaves, stats)] == [leaf.shape for leaf in leaves]


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one(tokens: int) -> None:
    """Of no token the trained head's gradients are zeros, and not what lay in their memory."""
    case = any_case(torch.float32, tokens, bias=True)
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case), exactly(wide)
    assert_close(stats, exact)
    mine = gradients(leaves, stats)
    assert [g.shape for g in mine] == [(tokens, 5), (40, 5), (40,)]
    assert_gradients(mine, gradients(wide_leaves, exact), 3e-6)
    assert tokens or all((g == 0).all() for g in mine)


def test_extras_that_are_measured_and_not_trained_change_no_gradient() -> None:
    """Not even a reverse KL of infinity."""
    case = any_case(torch.float32, bias=True)
    case.reference_head.bias[8] = -math.inf  # type: ignore[index]
    leaves = case.leaves()
    loss = lambda s: (s.policy_logp * torch.arange(1, 4, device=DEVICE)).sum() + 3 * s.forward_kl[1]  # noqa: E731
    measured, alone = ours(case), ours(case, extras=())
    assert (measured.reverse_kl == math.inf).all() and measured.policy_entropy.isfinite().all()  # type: ignore[union-attr]
    for a, b in zip(*(torch.autograd.grad(loss(stats), leaves) for stats in (measured, alone)), strict=True):
        assert a.isfinite().all() and a.any() and torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_models_have_exactly_no_divergence(dtype: torch.dtype) -> None:
    case = frozen_case(dtype, bias=True, scale=2.0, softcap=9.0)
    leaves = case.leaves()
    stats = ours(replace(case, hidden=case.hidden, reference=case.hidden.detach()))
    assert torch.equal(stats.policy_logp, stats.reference_logp)
    for kl in (stats.forward_kl, stats.reverse_kl, mixture_of(stats)):
        assert kl is not None and (kl == 0).all()
    both = (stats.forward_kl + mixture_of(stats)).sum()
    assert all((g == 0).all() for g in torch.autograd.grad(both, leaves))


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", "hidden+bias", "nothing"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    case = any_case(torch.bfloat16, tokens=2, vocabulary=20, bias=True)
    tensors = {"hidden": case.hidden, "weight": case.head.weight, "bias": case.head.bias}
    for name in tensors.keys() & set(trained.split("+")):
        tensors[name].requires_grad_()  # type: ignore[union-attr]
    case.reference.requires_grad_()
    stats = ours(case)
    assert stats.forward_kl.requires_grad == (trained != "nothing") and not stats.reference_logp.requires_grad
    if trained != "nothing":
        weighted_sum(stats).backward()
    assert case.reference.grad is None
    for name, tensor in tensors.items():
        assert (tensor.grad is not None) == (name in trained.split("+")), name  # type: ignore[union-attr]


def test_the_reference_is_recomputed_only_where_its_kl_has_a_gradient(
    kernels: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """Under TDPO2 a chosen token's KL has none. Gradients of rows with and without stand at their places."""
    case = any_case(torch.float32, tokens=5)
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    rows: dict[int, list[int]] = {5: [], 7: []}  # by size of hidden state: 5 the policy, 7 the reference
    original = products.multiply

    def recorded(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        if a.shape[1] in rows and b.shape[1] == 32:
            rows[a.shape[1]].append(a.shape[0])
        return original(a, b, out)

    stats, exact = ours(case, extras=(), learned_tokens={"forward_kl": range(2, 4)}), exactly(wide, extras=())
    kernels.setattr(products, "multiply", recorded)
    loss = lambda s: (s.policy_logp * torch.arange(1, 6, device=DEVICE)).sum() + 3 * s.forward_kl[2:4].sum()  # noqa: E731
    mine = torch.autograd.grad(loss(stats), leaves, retain_graph=True)
    assert rows == {5: [5], 7: [2]}
    torch.autograd.grad(stats.policy_logp.sum(), leaves)
    assert rows == {5: [5, 5], 7: [2]}, "KLs that are no part of the loss need no reference"
    assert_gradients(mine, torch.autograd.grad(loss(exact), wide_leaves), 3e-6)
    nothing = torch.autograd.grad(0 * ours(case).forward_kl.sum(), leaves)
    assert all((g == 0).all() for g in nothing)


@pytest.mark.parametrize("tile", [0, 1])
def test_bias_that_masks_entries(tile: int) -> None:
    """A whole tile and single entries are masked in both models, as padded vocabularies are."""
    case = any_case(torch.float32, vocabulary=64, bias=True)
    masked = [*range(32 * tile, 32 * tile + 32), 3, 50]
    kept = [v for v in range(64) if v not in masked]
    for head in (case.head, case.reference_head):
        head.bias[masked] = -math.inf  # type: ignore[index]
    case.targets = torch.tensor([kept[0], kept[9], kept[-1]]).to(DEVICE)
    small = [Head(h.weight[kept], h.bias[kept]) for h in (case.head, case.reference_head)]  # type: ignore[index]
    targets = torch.tensor([0, 9, len(kept) - 1]).to(DEVICE)
    wide = KernelCase(case.hidden, small[0], case.reference, small[1], targets).wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case), exactly(wide)
    assert_close(stats, exact)
    mine, right = gradients(leaves, stats), gradients(wide_leaves, exact)
    assert relative_difference(mine[0], right[0]) < 3e-6
    for a, b in zip(mine[1:], right[1:], strict=True):
        assert relative_difference(a[kept], b) < 3e-6 and (a[masked] == 0).all()


@pytest.mark.parametrize("low_at", [3, 37], ids=["first tile", "last tile"])
def test_support_that_one_model_lacks(low_at: int) -> None:
    """+inf and never NaN, also where the other model's weight there underflows; no other statistic is harmed."""
    case = frozen_case(torch.float32, bias=True)
    case.reference_head = replace(case.head, bias=case.head.bias.clone())  # type: ignore[union-attr]
    case.head.bias[low_at], case.reference_head.bias[low_at] = -math.inf, -2000.0  # type: ignore[index]
    case.targets[case.targets == low_at] = 0
    swapped = ours(
        KernelCase(case.reference, case.reference_head, case.hidden.clone(), case.head, case.targets),
        extras=head_cases.EXTRAS,
    )
    leaves = case.leaves()
    stats = ours(case, extras=head_cases.EXTRAS)
    assert (stats.forward_kl == math.inf).all() and stats.reverse_kl.isfinite().all()  # type: ignore[union-attr]
    assert (swapped.reverse_kl == math.inf).all() and swapped.forward_kl.isfinite().all()  # type: ignore[union-attr]
    unaffected = stats.policy_logp.sum() + stats.reverse_kl.sum() + stats.policy_entropy.sum()  # type: ignore[union-attr]
    assert all(g.isfinite().all() for g in torch.autograd.grad(unaffected, leaves))
    own = ours(replace(case, targets=torch.full_like(case.targets, low_at)), extras=())
    assert (own.policy_logp == -math.inf).all() and own.reference_logp.isfinite().all()


@pytest.mark.parametrize("weight", [0.02, 0.9])
def test_a_mixture_of_models_that_lack_each_others_entries(weight: float) -> None:
    """Masked in both, in either one, or in all but one entry; near ones beside: exact, finite, and with a gradient."""
    case = any_case(torch.float32, tokens=2, vocabulary=45, reference_size=5, bias=True)
    case.reference.copy_(case.hidden + 0.01)
    case.reference_head.weight.copy_(case.head.weight)
    for head, masked in ((case.head, [0, 1, 12, 37]), (case.reference_head, [0, 1, 20, 40])):
        head.bias[masked] = -math.inf  # type: ignore[index]
    case.head.bias[20] += 3.0  # type: ignore[index]
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    extras = (JensenShannon(weight),)
    value, exact = mixture_of(ours(case, extras=extras)), mixture_of(exactly(wide, extras=extras))
    assert torch.allclose(value.double(), exact, rtol=1e-5) and (exact > 1e-3).all()
    mine, right = (torch.autograd.grad(v.sum(), t) for v, t in ((value, leaves), (exact, wide_leaves)))
    assert_gradients(mine, right, 3e-5)
    assert (mine[2][[0, 1, 12, 37]] == 0).all() and mine[2].isfinite().all()
    case.reference_head.bias.fill_(-math.inf)[12] = 0.0  # type: ignore[union-attr, index]
    apart = mixture_of(ours(case, extras=extras))
    entropy = -weight * math.log(weight) - (1 - weight) * math.log(1 - weight)
    assert torch.allclose(apart, torch.full_like(apart, entropy), rtol=1e-5), "the most that there is"
    assert all(g.isfinite().all() for g in torch.autograd.grad(apart.sum(), leaves))


def test_a_reverse_kl_of_infinity_harms_no_token_whose_reverse_kl_has_no_gradient() -> None:
    """The sum over tokens of everything else has a finite gradient, and only the one token's is infinite or NaN."""
    case = frozen_case(torch.float32, bias=True)
    case.reference_head = replace(case.head, bias=case.head.bias.clone())  # type: ignore[union-attr]
    case.reference_head.bias[8] = -math.inf  # type: ignore[index]
    case.hidden.requires_grad_()
    stats = ours(case)
    loss = stats.forward_kl.sum() + stats.reverse_kl[1]  # type: ignore[index]
    (gradient,) = torch.autograd.grad(loss, case.hidden)
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("nats", [18.0, 60.0, 300.0])
def test_logits_far_apart(nats: float) -> None:
    """Each model's likeliest token in a tile of its own, so that both scales rise, each where the other's does not."""
    case = any_case(torch.float32, tokens=2, vocabulary=90, bias=True)
    case.head.bias[70] += nats  # type: ignore[index]
    case.reference_head.bias[40] += nats  # type: ignore[index]
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case), exactly(wide)
    assert exact.forward_kl.min() > 0.5 * nats
    assert_close(stats, exact)
    assert_gradients(gradients(leaves, stats), gradients(wide_leaves, exact), 1e-5)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    case = any_case(torch.float32, bias=True)
    before = ours(case)
    case.head.bias.add_(50.0)  # type: ignore[union-attr]
    case.reference_head.bias.sub_(300.0)  # type: ignore[union-attr]
    after = ours(case)
    for a, b in zip(vars(before).values(), vars(after).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_nan_stays_nan() -> None:
    case = any_case(torch.bfloat16)
    clean = ours(case)
    case.hidden[1, 0] = math.nan
    stats = ours(case)
    for name in ("policy_logp", "forward_kl", "reverse_kl", "policy_entropy", "jensen_shannon"):
        value, before = getattr(stats, name), getattr(clean, name)
        assert value[1].isnan() and torch.equal(value[[0, 2]], before[[0, 2]]), name


def test_the_soft_caps_tangent_is_accurate_at_every_size() -> None:
    """Logits of all sizes beside a cap of 1: near 0, where exponentials would cancel, and where the tangent is flat."""
    from tdpo.token_statistics.cuda import tiled_forward  # needs Triton

    sizes = torch.tensor([0.0, 1e-30, 1e-6, 1e-3, 0.1, 0.2499, 0.2501, 1.0, 5.0, 30.0, 1e4])
    weight = torch.cat([sizes, -sizes])[:, None].to(DEVICE)
    head = Head(weight, softcap=1.0)
    entries = torch.arange(len(weight)).to(DEVICE)
    ones = torch.ones(len(weight), 1).to(DEVICE)
    table = []
    original = tiled_forward.ForwardSums.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiled_forward.ForwardSums, "finish", lambda s, extras: (table.append(s["own"]), original(s, extras))
        )
        linear_token_stats(ones, head, ones, head, entries)
    exact = torch.tanh(weight[:, 0].double())
    assert ((table[0] - exact).abs() <= 1e-6 * exact.abs()).all()


def test_the_mixture_is_accurate_at_every_size_of_a_gap() -> None:
    """Two entries whose log-odds differ by so many nats: on both sides of each series' end, and where one vanishes."""
    sizes = torch.tensor([1e-4, 1e-3, 0.01, 0.1, 0.9, 1.1, 3.0, 30.0, 90.0])
    hidden = torch.cat([sizes, -sizes])[:, None].to(DEVICE).requires_grad_()
    weight, targets = torch.tensor([[0.0], [1.0]]).to(DEVICE), torch.zeros(len(hidden)).long().to(DEVICE)
    case = KernelCase(hidden, Head(weight), torch.zeros_like(hidden), Head(weight), targets)
    wide = case.wide()
    wide.hidden.requires_grad_()
    value, exact = (mixture_of(each(c, extras=[JensenShannon(0.3)])) for each, c in ((ours, case), (exactly, wide)))
    assert ((value - exact).abs() <= 3e-6 * exact).all()
    slope, right = torch.autograd.grad(value.sum(), hidden)[0], torch.autograd.grad(exact.sum(), wide.hidden)[0]
    sure = hidden.abs() > 10  # of a probability of 1 float32 leaves no slope
    assert ((slope - right).abs() <= torch.where(sure, 1e-6, 3e-6 * right.abs())).all()


def test_the_same_bits_twice() -> None:
    case = any_case(torch.bfloat16, bias=True)
    leaves = case.leaves()
    first, second = ours(case), ours(case)
    for a, b in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(gradients(leaves, first), gradients(leaves, second), strict=True))


def test_views_of_any_stride() -> None:
    case = any_case(torch.bfloat16, bias=True)

    def strided(t: Tensor) -> Tensor:
        """The same values, each axis transposed and every second entry of a larger buffer."""
        buffer = torch.empty(*(2 * n for n in reversed(t.shape)), dtype=t.dtype, device=t.device)
        view = buffer[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach())

    def strided_head(head: Head) -> Head:
        return Head(strided(head.weight), strided(head.bias))  # type: ignore[arg-type]

    other = KernelCase(
        strided(case.hidden), strided_head(case.head), strided(case.reference), strided_head(case.reference_head),
        strided(case.targets),
    )  # fmt: skip
    leaves, other_leaves = case.leaves(), other.leaves()
    plain, views = ours(case), ours(other)
    for a, b in zip(vars(plain).values(), vars(views).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for a, b in zip(gradients(leaves, plain), gradients(other_leaves, views), strict=True):
        assert torch.allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_what_a_linear_would(weight_dtype: torch.dtype) -> None:
    """Both models' float32 operands are rounded once; gradients come back in the dtype of their tensor."""
    case = frozen_case(torch.float32)
    case.head = case.reference_head = Head(case.head.weight.to(weight_dtype))
    leaves = case.leaves()
    with torch.autocast(DEVICE, torch.bfloat16):
        stats = ours(case)
        same = ours(replace(case, reference=case.hidden.detach()))
    mine = gradients(leaves, stats)
    assert [g.dtype for g in mine] == [torch.float32, weight_dtype]
    rounded = replace(case, hidden=case.hidden.detach().bfloat16(), reference=case.reference.bfloat16())
    rounded.head = rounded.reference_head = Head(case.head.weight.detach().bfloat16())
    wide = rounded.wide()
    wide.reference_head = Head(wide.head.weight.clone())
    wide_leaves = wide.leaves()
    exact = exactly(wide)
    assert_close(stats, exact)
    assert_gradients(mine, gradients(wide_leaves, exact), 0.01)
    assert (same.forward_kl == 0).all() and (same.reverse_kl == 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), [(a, b) for a in DTYPES for b in DTYPES if a != b])
def test_mixed_operands(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Gradients as exact as the coarser of the dtypes that they meet, in the dtype of their tensor."""
    case = any_case(hidden_dtype, tokens=2, vocabulary=20)
    case.head = Head(case.head.weight.to(weight_dtype))
    wide = case.wide()
    leaves, wide_leaves = case.leaves(), wide.leaves()
    stats, exact = ours(case, extras=()), exactly(wide, extras=())
    assert_close(stats, exact)
    for leaf, a, b in zip(leaves, gradients(leaves, stats), gradients(wide_leaves, exact), strict=True):
        assert a.dtype == leaf.dtype
        assert relative_difference(a, b) < max(3e-6, torch.finfo(a.dtype).eps)


def test_tokens_are_independent() -> None:
    case = any_case(torch.bfloat16, tokens=4)
    stats = ours(case)
    for rows in ([3, 0, 1, 2], [1], []):
        some = replace(case, hidden=case.hidden[rows], reference=case.reference[rows], targets=case.targets[rows])
        for a, b in zip(vars(stats).values(), vars(ours(some)).values(), strict=True):
            assert torch.allclose(a[rows], b, atol=1e-6)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    case = any_case(torch.float32, tokens=1)
    case.leaves()
    loss = ours(case).forward_kl.square().sum()
    (first,) = torch.autograd.grad(loss, case.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    case = any_case(torch.float32, tokens=1)
    case.leaves()
    stats = ours(case)
    with torch.no_grad():
        case.head.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weighted_sum(stats).backward()
