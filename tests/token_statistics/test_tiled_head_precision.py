"""Dtypes of the tiled operator: float32 logits from any operands, small KLs and their gradients exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import oracle
from helpers.head_cases import EXTRAS, FLOAT, gradients, make_case
from tdpo import Head, linear_token_stats
from tdpo.token_statistics import products


@pytest.mark.parametrize("weight_dtype", FLOAT)
@pytest.mark.parametrize("hidden_dtype", FLOAT)
def test_mixed_operands(hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Gradients as exact as the coarser of the two dtypes that they meet, in the dtype of their tensor."""
    case = make_case("bias", torch.float64)
    case.hidden, case.reference_hidden = case.hidden.to(hidden_dtype), case.reference_hidden.to(hidden_dtype)
    case.head = Head(case.head.weight.to(weight_dtype), case.head.bias.to(weight_dtype))  # type: ignore[union-attr]
    leaves = case.leaves()
    stats = linear_token_stats(*case.arguments())
    assert stats.forward_kl.dtype == (torch.float64 if hidden_dtype == torch.float64 else torch.float32)
    exact = make_case("bias", torch.float64)
    exact.hidden, exact.reference_hidden = case.hidden.detach().double(), case.reference_hidden.double()
    exact.head = Head(case.head.weight.detach().double(), case.head.bias.detach().double())  # type: ignore[union-attr]
    oracle_stats = linear_token_stats(*exact.arguments(), impl="dense")
    assert torch.allclose(stats.forward_kl.double(), oracle_stats.forward_kl, rtol=1e-5, atol=1e-5)
    wide = torch.promote_types(hidden_dtype, weight_dtype)
    expected = gradients(exact.leaves(), linear_token_stats(*exact.arguments(), impl="dense"))
    for gradient, right in zip(gradients(leaves, stats), expected, strict=True):
        eps = max(torch.finfo(wide).eps, torch.finfo(gradient.dtype).eps, 1e-6)
        assert (gradient.double() - right).abs().max() <= 2 * eps * right.abs().max()


@pytest.mark.parametrize("impl", ["tiled", "dense"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
def test_small_kls_are_accurate(dtype: torch.dtype, bound: float, impl: Any) -> None:
    """Near 1e-3 nats, against float64 of the same operands, and no worse than the naive code in that dtype."""
    given = oracle.realistic_operands(dtype)
    exact, head = given.kl(), Head(given.weight)
    assert 5e-4 < exact.mean() < 2e-3
    stats = linear_token_stats(given.hidden, head, given.reference_hidden, head, given.targets, impl=impl)
    error = oracle.relative_error(stats.forward_kl, exact)
    naive = oracle.naive_forward_kl(given.hidden @ given.weight.T, given.reference_hidden @ given.weight.T)
    assert error <= bound
    assert not oracle.relative_error(naive, exact) < error


def test_the_dense_oracle_is_exact_to_the_last_bit_of_float32() -> None:
    """Float32 products bound a KL of some nats: what others are judged by computes in float64."""
    given = oracle.realistic_operands(torch.float32)
    far = given.hidden.roll(1, 0)  # another token's state, several nats away
    head = Head(given.weight)
    stats = linear_token_stats(far, head, given.reference_hidden, head, given.targets, extras=EXTRAS, impl="dense")
    policy = (far.double() @ given.weight.double().T).log_softmax(-1)
    reference = (given.reference_hidden.double() @ given.weight.double().T).log_softmax(-1)
    assert (exact := (reference.exp() * (reference - policy)).sum(-1)).median() > 1
    assert torch.equal(stats.forward_kl, exact.float())
    assert stats.reverse_kl is not None and stats.reverse_kl.dtype == torch.float32
    assert torch.allclose(stats.reverse_kl.double(), (policy.exp() * (policy - reference)).sum(-1), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_small_gradients_are_accurate(dtype: torch.dtype, bound: float) -> None:
    given = oracle.realistic_operands(dtype)
    leaves = [given.hidden.requires_grad_(), given.weight.requires_grad_()]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    p, q = wide[0] @ wide[1].T, given.reference_hidden.double() @ wide[1].detach().T
    exact = torch.autograd.grad((q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum(), wide)
    head, reference_head = Head(given.weight), Head(given.weight.detach())
    stats = linear_token_stats(given.hidden, head, given.reference_hidden, reference_head, given.targets)
    for ours, right in zip(torch.autograd.grad(stats.forward_kl.sum(), leaves), exact, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - right).norm() <= bound * right.norm()


def test_the_cpus_precision_switch_is_restored() -> None:
    switch, half = torch.backends.mkldnn.matmul, torch.randn(4, 4).bfloat16()
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "ieee"
        products.wide_product(half, half)
        assert switch.fp32_precision == "ieee"
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            products.wide_product(half, half[:3])
        assert switch.fp32_precision == "ieee"
    finally:
        switch.fp32_precision = before


@pytest.mark.parametrize("right", FLOAT)
@pytest.mark.parametrize("left", FLOAT)
def test_products_keep_float32_accuracy_whatever_the_operands(left: torch.dtype, right: torch.dtype) -> None:
    """Only where both operands hold bf16 values may the kernel use bf16 units."""
    a, b = torch.randn(128, 256).to(left), torch.randn(256, 512).to(right)
    product = products.wide_product(a, b)
    assert product.dtype == (torch.float64 if torch.float64 in (left, right) else torch.float32)
    assert (product.double() - a.double() @ b.double()).abs().max() < 1e-4


def test_bf16_units_are_used_only_where_both_operands_hold_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of the kernel is watched, because processors without such units would hide a mistake."""
    switched: dict[tuple[torch.dtype, torch.dtype], bool] = {}
    original = products.float32_products_in_bf16

    def recorded(enabled: bool) -> Any:
        switched[left, right] = enabled
        return original(enabled)

    monkeypatch.setattr(products, "float32_products_in_bf16", recorded)
    for left in FLOAT:
        for right in FLOAT:
            products.wide_product(torch.randn(2, 2).to(left), torch.randn(2, 2).to(right))
    assert [pair for pair, enabled in switched.items() if enabled] == [(torch.bfloat16, torch.bfloat16)]
