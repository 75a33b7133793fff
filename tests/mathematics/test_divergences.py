"""Divergences from logits against hand-computed values, an independent oracle, and their extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from helpers import oracle
from tdpo.divergences import entropy, forward_kl, jensen_shannon, reverse_kl, sampled_kl

INF = math.inf
Divergence = Callable[[Tensor, Tensor], Tensor]
DIVERGENCES: list[Divergence] = [forward_kl, reverse_kl, jensen_shannon]

# Up to 60 nats apart, a realistic extreme; a prime number of entries; some rows with two equal entries.
logit_rows = arrays(np.float64, (3, 7), elements=st.floats(-30, 30))


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


# π = (1/2, 1/2), π_ref = (1/4, 3/4)
POLICY, REFERENCE = logits_of(0.5, 0.5), logits_of(0.25, 0.75)


def test_values_by_hand() -> None:
    ln = math.log
    assert forward_kl(POLICY, REFERENCE).item() == pytest.approx(ln(0.5) / 4 + 3 * ln(1.5) / 4)
    assert reverse_kl(POLICY, REFERENCE).item() == pytest.approx(ln(2) / 2 + ln(2 / 3) / 2)
    # The mixture with w = 1/2 is (3/8, 5/8).
    half = (ln(2 / 3) / 4 + 3 * ln(6 / 5) / 4 + ln(4 / 3) / 2 + ln(4 / 5) / 2) / 2
    assert jensen_shannon(POLICY, REFERENCE).item() == pytest.approx(half)
    # w = 3/4 on the reference: the mixture is (5/16, 11/16).
    skewed = 0.75 * (ln(4 / 5) / 4 + 3 * ln(12 / 11) / 4) + 0.25 * (ln(8 / 5) / 2 + ln(8 / 11) / 2)
    assert jensen_shannon(POLICY, REFERENCE, weight=0.75).item() == pytest.approx(skewed)
    assert entropy(POLICY).item() == pytest.approx(ln(2))
    assert entropy(torch.zeros(4)).item() == pytest.approx(ln(4))
    assert entropy(torch.tensor([0.0, -INF, -INF])).item() == 0.0


@settings(deadline=None, max_examples=60)
@given(logit_rows, logit_rows)
def test_agrees_with_the_oracle(a: np.ndarray, b: np.ndarray) -> None:
    policy, reference = torch.from_numpy(a), torch.from_numpy(b)
    expected = oracle.statistics(policy, reference, torch.zeros(3, dtype=torch.int64))
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(forward_kl(policy, reference).numpy(), expected.forward_kl, **close)
    np.testing.assert_allclose(reverse_kl(policy, reference).numpy(), expected.reverse_kl, **close)
    np.testing.assert_allclose(entropy(policy).numpy(), expected.policy_entropy, **close)


@settings(deadline=None, max_examples=60)
@given(logit_rows, logit_rows, st.floats(-20, 20), st.sampled_from([torch.float32, torch.float64]))
def test_properties(a: np.ndarray, b: np.ndarray, shift: float, dtype: torch.dtype) -> None:
    policy, reference = torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype)
    rounding = 1e-4 if dtype == torch.float32 else 1e-12
    for divergence in DIVERGENCES:
        value = divergence(policy, reference)
        assert value.dtype == dtype
        assert (value >= -rounding).all()
        assert (divergence(policy, policy).abs() <= (0 if divergence is not jensen_shannon else rounding)).all()
        assert torch.allclose(divergence(policy + shift, reference - shift), value, rtol=1e-4, atol=rounding)
    assert torch.equal(forward_kl(policy, reference), reverse_kl(reference, policy))
    symmetric = jensen_shannon(policy, reference)
    assert torch.allclose(symmetric, jensen_shannon(reference, policy), atol=rounding)
    assert (symmetric <= math.log(2) + rounding).all()
    assert (entropy(policy) <= math.log(7) + rounding).all()


def test_entries_masked_in_both_models_add_nothing() -> None:
    policy, reference = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    masked = torch.full((2, 2), -INF)
    wide_policy, wide_reference = torch.cat([policy, masked], 1), torch.cat([reference, masked], 1)
    for divergence in DIVERGENCES:
        assert torch.allclose(divergence(wide_policy, wide_reference), divergence(policy, reference))
        (plain,) = torch.autograd.grad(divergence(policy, reference).sum(), policy)
        (gradient,) = torch.autograd.grad(divergence(wide_policy, wide_reference).sum(), policy)
        assert torch.allclose(gradient, plain)
    assert torch.allclose(entropy(wide_policy), entropy(policy))


@pytest.mark.parametrize("trailing", [0.0, -1000.0], ids=["plain", "reference weight underflows"])
def test_support_missing_in_the_policy_is_infinite_and_stays_in_its_row(trailing: float) -> None:
    policy = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    reference = torch.tensor([[0.0, 1.0, trailing], [1.0, 0.0, 0.5]])
    value = forward_kl(policy, reference)
    assert value[0] == INF
    assert value[1] == forward_kl(policy[1], reference[1])
    assert reverse_kl(policy, reference)[0].isfinite()
    assert reverse_kl(reference, policy)[0] == INF
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert torch.allclose(gradient[1], policy[1].softmax(-1) - reference[1].softmax(-1))
    assert not gradient.isnan().any()


def test_support_missing_in_the_reference_leaves_the_forward_kl_finite() -> None:
    policy, reference = torch.tensor([0.0, 1.0, 2.0], requires_grad=True), torch.tensor([0.0, 1.0, -INF])
    value = forward_kl(policy, reference)
    assert value.isfinite()
    assert torch.autograd.grad(value, policy)[0].isfinite().all()


def test_a_reference_logit_far_below_the_maximum() -> None:
    policy, reference = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, -1000.0])
    assert oracle.naive_forward_kl(policy, reference).isnan(), "the form that is usually published fails here"
    expected = oracle.statistics(policy[None], reference[None], torch.tensor([0])).forward_kl[0]
    assert forward_kl(policy, reference).item() == pytest.approx(expected, rel=1e-6)


def test_jensen_shannon_stays_finite_with_disjoint_supports() -> None:
    policy = torch.tensor([[0.0, -INF, 1.0, -INF], [-INF, 0.0, -INF, -INF]], requires_grad=True)
    reference = torch.tensor([[-INF, 0.0, 1.0, -INF], [0.0, -INF, -INF, -INF]], requires_grad=True)
    value = jensen_shannon(policy, reference)
    assert value.isfinite().all()
    assert value[1].item() == pytest.approx(math.log(2))
    for gradient in torch.autograd.grad(value.sum(), (policy, reference)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("divergence", [*DIVERGENCES, lambda p, q: entropy(p) + 0 * q.sum(-1)])
def test_gradients(divergence: Divergence) -> None:
    policy, reference = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(divergence, (policy, reference))


def test_the_gradient_of_the_forward_kl_is_policy_minus_reference() -> None:
    policy, reference = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5).double()
    (gradient,) = torch.autograd.grad(forward_kl(policy, reference).sum(), policy)
    assert torch.allclose(gradient, policy.softmax(-1) - reference.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_no_more_than_the_naive_form(dtype: torch.dtype) -> None:
    reference = (4 * torch.randn(64, 501)).to(dtype)
    policy = (reference + 0.3 * torch.randn(64, 501)).to(dtype)
    expected = oracle.statistics(policy, reference, torch.zeros(64, dtype=torch.int64))
    value = forward_kl(policy, reference)
    assert value.dtype == torch.float32
    error = np.abs(value.numpy() - expected.forward_kl)
    naive = np.abs(oracle.as_array(oracle.naive_forward_kl(policy, reference)) - expected.forward_kl)
    assert error.max() <= 1e-5
    assert not naive.max() <= 1e-5  # in float16 it is NaN: the reference's probabilities underflow
    np.testing.assert_allclose(reverse_kl(policy, reference).numpy(), expected.reverse_kl, atol=1e-5)
    np.testing.assert_allclose(entropy(policy).numpy(), expected.policy_entropy, atol=1e-5)


# The estimators, by exact enumeration over a policy with four actions: an expectation is a sum.
ACTIONS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
OTHER = torch.tensor([-0.4, 0.5, 0.2, -1.1], dtype=torch.float64)


def test_expectations_of_the_estimators() -> None:
    policy, reference = ACTIONS.log_softmax(-1), OTHER.log_softmax(-1)
    exact = reverse_kl(ACTIONS, OTHER).item()
    mean = {k: (policy.exp() * sampled_kl(policy, reference, k)).sum().item() for k in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(exact)
    assert mean["k3"] == pytest.approx(exact)
    assert mean["k2"] == pytest.approx((policy.exp() * (policy - reference) ** 2).sum().item() / 2)
    assert (sampled_kl(policy, reference, "k3") >= 0).all()
    assert (sampled_kl(policy, reference, "k1") < 0).any()


def test_gradients_of_the_estimators() -> None:
    """The table of `docs/the_two_kls.md`: which KL each estimator descends, as reward and as loss term."""
    logits = ACTIONS.clone().requires_grad_()
    reference = OTHER.log_softmax(-1)

    def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(of(logits), logits)[0]

    def in_reward(estimator: str) -> Tensor:
        def surrogate(z: Tensor) -> Tensor:
            logp = z.log_softmax(-1)
            return (logp.exp().detach() * sampled_kl(logp, reference, estimator).detach() * logp).sum()

        return gradient(surrogate)

    def in_loss(estimator: str) -> Tensor:
        def mean(z: Tensor) -> Tensor:
            logp = z.log_softmax(-1)
            return (logp.exp().detach() * sampled_kl(logp, reference, estimator)).sum()

        return gradient(mean)

    reverse, forward = gradient(lambda z: reverse_kl(z, OTHER)), gradient(lambda z: forward_kl(z, OTHER))
    assert not torch.allclose(reverse, forward, rtol=0.1)
    assert torch.allclose(in_reward("k1"), reverse)
    assert torch.allclose(in_loss("k1"), torch.zeros(4, dtype=torch.float64), atol=1e-15)
    assert not torch.allclose(in_reward("k2"), reverse, rtol=0.1)
    assert torch.allclose(in_loss("k2"), reverse)
    assert torch.allclose(in_reward("k3"), reverse - forward)
    assert torch.allclose(in_loss("k3"), forward)


def test_estimators_widen_half_precision() -> None:
    value = sampled_kl(torch.tensor([-2.0]).bfloat16(), torch.tensor([-2.5]).bfloat16(), "k3")
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_errors_name_what_came_and_what_was_expected() -> None:
    for divergence in DIVERGENCES:
        with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 6\).*share a vocabulary"):
            divergence(torch.zeros(2, 5), torch.zeros(2, 6))
    for weight in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"strictly between 0 and 1, got {weight}"):
            jensen_shannon(torch.zeros(2), torch.zeros(2), weight=weight)
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        sampled_kl(torch.zeros(2), torch.zeros(3), "k1")
    with pytest.raises(ValueError, match="one of k1, k2, k3, got 'k4'"):
        sampled_kl(torch.zeros(2), torch.zeros(2), "k4")  # type: ignore[arg-type]
