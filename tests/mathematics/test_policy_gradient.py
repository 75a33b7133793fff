"""Advantages, clipped losses, KL terms and controllers against hand-computed values and independent float64 code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.ppo_cases import ACCEPTED
from tdpo import token_stats
from tdpo.kl_choices import estimator_of, shortest_horizon
from tdpo.policy_gradient import (
    KLCoefficient,
    KLConstraint,
    RewardScale,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    group_relative,
    kl_loss,
    kl_penalty,
    leave_one_out,
    moments,
)

REFUSED = [
    ("reverse", "exact", "reward", "no gradient at that position"),
    ("forward", "exact", "reward", "no gradient at that position"),
    ("forward", "sampled", "reward", "reverse minus forward"),
]


# ---- advantages ----


def test_gae_by_hand() -> None:
    # γ = 0.5, λ = 0.5; δ = (1 + 0.5·4 − 2, 2 + 0.5·1 − 4, 3 + 0 − 1) = (1, −1.5, 2); A = δ_t + 0.25·A_{t+1}.
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 1.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1 + 0.25 * (-1.5 + 0.25 * 2), -1.5 + 0.25 * 2, 2.0]]
    assert torch.equal(returns, advantages + values)


def gae_by_sums(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition: A_t = Σ_k (γλ)^k δ_{t+k}, without the recursion."""
    after = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    gamma=st.floats(0.1, 1.0),
    lam=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_gae_is_its_definition_whatever_the_padding(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    width = max(lengths) + 2
    # What stands in the padding must not matter, not even if it is not a number.
    rewards = torch.full((len(lengths), width), torch.nan, dtype=torch.float64)
    values, mask = rewards.clone(), torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        rewards[row, :length], values[row, :length] = torch.randn(2, length, generator=make, dtype=torch.float64)
        mask[row, :length] = True
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        expected = gae_by_sums(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_lambda_one_is_the_sum_of_rewards_and_nothing_is_bootstrapped_past_the_end() -> None:
    rewards = torch.tensor([[0.0, 0.0, 5.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    _, returns = gae(rewards, torch.tensor([[1.0, 2.0, 3.0, 1e6]]), mask, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[5.0, 5.0, 5.0, 0.0]]


def test_gae_wants_one_shape() -> None:
    with pytest.raises(ValueError, match=r"one shape \[S, T\]"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool), gamma=1.0, lam=1.0)


def test_moments_over_processes_are_those_of_all_values_and_keep_their_digits() -> None:
    parts = [torch.tensor(v, dtype=torch.float64) for v in ([1e8 + 1.0, 1e8 + 2.0], [1e8 + 3.0])]

    def reduced(i: int) -> tuple[float, float]:
        # Both processes call `total` in the same order; this plays the other one.
        def total(sums: Tensor) -> Tensor:
            if len(sums) == 2:
                return torch.stack([torch.tensor(3.0).double(), sum(p.sum() for p in parts)])  # type: ignore[arg-type]
            return sum(((p - (1e8 + 2.0)).square().sum() for p in parts), torch.tensor(0.0).double())[None]

        return moments(parts[i], total)

    assert reduced(0) == reduced(1) == (1e8 + 2.0, pytest.approx(math.sqrt(2 / 3), rel=1e-12))
    assert moments(torch.cat(parts))[1] == pytest.approx(math.sqrt(2 / 3), rel=1e-12)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(4), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(torch.zeros(4), torch.ones(4)) == 0.0  # nothing varies


def test_comparing_responses_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    assert leave_one_out(rewards).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]
    assert group_relative(rewards, divide_by_std=False).tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    divided = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]) / (math.sqrt(7.0) + 1e-4)
    assert torch.allclose(group_relative(rewards, divide_by_std=True), divided.double(), atol=1e-7)
    nearly = torch.full((1, 3), 0.1, dtype=torch.float64) + torch.tensor([[0.0, 1e-16, -1e-16]])
    assert group_relative(nearly, divide_by_std=True).abs().max() < 1e-9, "rounding is no difference"
    for wrong in (torch.ones(3, 1), torch.ones(3)):
        with pytest.raises(ValueError, match="nothing to be compared with"):
            leave_one_out(wrong)
        with pytest.raises(ValueError, match="nothing to be compared with"):
            group_relative(wrong, divide_by_std=False)


@pytest.mark.parametrize("k", [2, 3])
def test_which_comparison_has_the_gradient_of_the_expected_reward(k: int) -> None:
    """All draws of K responses from one symbol of four, each weighted with its probability: no sampling."""
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    of_symbols = torch.tensor([1.0, 0.2, 0.7, -2.0], dtype=torch.float64)
    draws = torch.cartesian_prod(*[torch.arange(4)] * k)

    def gradient(advantages: Tensor) -> Tensor:
        logp = logits.log_softmax(-1)[draws]
        weight = logp.sum(1).exp().detach()
        return torch.autograd.grad((weight * (advantages * logp).mean(1)).sum(), logits)[0]

    rewards = of_symbols[draws]
    expected = torch.autograd.grad((logits.softmax(-1) * of_symbols).sum(), logits)[0]
    assert torch.allclose(gradient(leave_one_out(rewards)), expected, atol=1e-12)
    assert torch.allclose(gradient(group_relative(rewards, divide_by_std=False)), expected * (k - 1) / k, atol=1e-12)
    divided = gradient(group_relative(rewards, divide_by_std=True))
    assert torch.cosine_similarity(divided, expected, dim=0) < 0.99, "GRPO's division points elsewhere"


# ---- losses ----


def test_clipped_policy_loss_by_hand() -> None:
    old = torch.zeros(6)
    ratios = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    logp = ratios.log().requires_grad_()
    found = clipped_policy_loss(logp, old, advantages, 0.2)
    # A > 0: the ratio counts up to 1.2; A < 0: from 0.8 on. Beyond, there is no gradient.
    assert found.per_token.tolist() == pytest.approx([-1.0, -2.0, -2.4, 1.6, 2.0, 3.0])
    assert found.clipped.tolist() == [False, False, True, True, False, False]
    found.per_token.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-1.0, -2.0, 0.0, 0.0, 2.0, 3.0])


def test_clipped_value_loss_by_hand() -> None:
    values = torch.tensor([1.0, 3.0, 0.4], requires_grad=True)
    old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 4.0, 0.0])
    found = clipped_value_loss(values, old, returns, 0.5)
    # The worse of the free and the clipped error: ½·1; clip(3 → 1.5): ½·2.5² over ½·1; clip(0.4 → 0.5): ½·0.5².
    assert found.per_token.tolist() == pytest.approx([0.5, 3.125, 0.125])
    assert found.clipped.tolist() == [False, True, True]
    found.per_token.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-1.0, 0.0, 0.0])
    assert clipped_value_loss(values, old, returns, None).per_token.tolist() == pytest.approx([0.5, 0.5, 0.08])


# ---- the KL constraint ----


@pytest.mark.parametrize(("direction", "form", "place", "estimator"), ACCEPTED)
def test_accepted_constraints_have_the_gradient_of_their_name(
    direction: str, form: str, place: str, estimator: str
) -> None:
    """Averaged exactly over tokens drawn from an *older* policy, with the weights the loss gives them."""
    make = torch.Generator().manual_seed(3)
    vocabulary = 7
    logits = torch.randn(vocabulary, generator=make, dtype=torch.float64, requires_grad=True)
    old, reference = torch.randn(2, vocabulary, generator=make, dtype=torch.float64).log_softmax(-1)
    constraint = KLConstraint(direction, form, place, "fixed")  # type: ignore[arg-type]
    assert constraint.estimator == estimator_of(direction, form, place) == estimator  # type: ignore[arg-type]

    policy = logits.log_softmax(-1)
    kl = (policy.exp() * (policy - reference)).sum()
    if direction == "forward":
        kl = (reference.exp() * (reference - policy)).sum()
    [wanted] = torch.autograd.grad(kl, logits, retain_graph=True)

    tokens = torch.arange(vocabulary)
    rows, reference_rows = logits.expand(vocabulary, -1), reference.expand(vocabulary, -1)
    stats = token_stats(rows, reference_rows, tokens, extras=("reverse_kl",))
    if place == "loss":
        term = kl_loss(constraint, stats, old)
        assert term is not None
        surrogate = (old.exp() * term).sum()
        assert not kl_penalty(constraint, stats.policy_logp, stats.reference_logp).any()
    else:
        assert kl_loss(constraint, stats, old) is None
        penalty = kl_penalty(constraint, stats.policy_logp, stats.reference_logp).detach()
        surrogate = (old.exp() * (stats.policy_logp - old).exp() * penalty).sum()
    [found] = torch.autograd.grad(surrogate, logits)
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(("direction", "form", "place", "reason"), REFUSED)
def test_refused_constraints_say_why(direction: str, form: str, place: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KLConstraint(direction, form, place, "fixed")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"coefficient": -1.0}, "coefficient must be finite and ≥ 0"),
        ({"coefficient": math.nan}, "coefficient must be finite"),
        ({"coefficient": 0.0}, "can never rise"),
        ({"controller": "fixed", "target": 3.0}, "kl.target has no effect"),
        ({"controller": "fixed", "horizon": 9}, "kl.horizon has no effect"),
        ({"controller": "dual", "horizon": 9}, "kl.horizon has no effect with kl.controller dual, which has none"),
        ({"controller": "fixed", "target_direction": "forward"}, "kl.target_direction has no effect"),
        ({"target_direction": "js"}, "kl.target_direction must be reverse, forward or None, got 'js'"),
        ({"controller": "dual", "coefficient": 0.0}, "can never rise under the dual controller"),
        ({"controller": "pid"}, "must be fixed, adaptive or dual, got 'pid'"),
        ({"target": 0.0}, "must be > 0"),
        ({"direction": "backward"}, "direction must be one of reverse, forward, got 'backward'"),
    ],
)
def test_constraints_out_of_range(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KLConstraint(**fields)  # type: ignore[arg-type]


def test_the_adaptive_controller_by_hand() -> None:
    held = KLCoefficient(KLConstraint(coefficient=0.2, target=6.0, horizon=10_000))
    held.update(6.0, 64)
    assert held.value == 0.2
    held.update(6.6, 100)  # e = 0.1
    assert held.value == pytest.approx(0.2 * (1 + 0.1 * 100 / 10_000))
    before = held.value
    held.update(60.0, 100)  # e is cut at 0.2
    assert held.value == pytest.approx(before * (1 + 0.2 * 100 / 10_000))
    before = held.value
    held.update(0.0, 100)
    assert held.value == pytest.approx(before * (1 - 0.2 * 100 / 10_000))
    other = KLCoefficient(KLConstraint(coefficient=0.2, target=6.0, horizon=10_000))
    other.load_state_dict(held.state_dict())
    assert other.value == held.value
    with pytest.raises(ValueError, match="became nan nats"):
        held.update(math.nan, 100)


def test_the_shortest_horizon_halves_the_coefficient_at_most() -> None:
    horizon = shortest_horizon(64)
    held = KLCoefficient(KLConstraint(coefficient=1.0, target=1.0, horizon=horizon))
    held.update(0.0, 64)
    assert 0.5 <= held.value < 0.55


def test_a_fixed_coefficient_stays() -> None:
    fixed = KLCoefficient(KLConstraint(controller="fixed", coefficient=0.3))
    fixed.update(100.0, 64)
    assert fixed.value == 0.3


def test_the_reward_scale_is_that_of_all_rewards_so_far() -> None:
    batches = [torch.tensor([1.0, 2.0, 5.0]).double(), torch.tensor([-3.0, 0.5]).double()]
    scale = RewardScale()
    for batch in batches:
        scale.update(len(batch), *moments(batch))
    every = torch.cat(batches)
    assert torch.allclose(scale.apply(every), (every - every.mean()) / every.std(correction=0))
    again = RewardScale()
    again.load_state_dict(scale.state_dict())
    assert torch.equal(again.apply(every), scale.apply(every))
    constant = RewardScale()
    constant.update(4, 2.0, 0.0)
    assert constant.apply(torch.tensor([2.0, 3.0])).tolist() == [0.0, 1.0]
