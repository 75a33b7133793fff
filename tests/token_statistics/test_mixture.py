"""The Jensen–Shannon divergence as an extra: tiled and dense beside explicit sums, its gradient, limits and masks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import oracle
from helpers.head_cases import KINDS, Case, gradients, make_case, use_tiles_of
from tdpo import frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.token_statistics import JensenShannon, MixtureTokenStats, token_stats

WEIGHT = 0.3


def mixed(case: Case, weight: float = WEIGHT, **options: Any) -> Tensor:
    stats = linear_token_stats(*case.arguments(), extras=[JensenShannon(weight)], **options)
    assert isinstance(stats, MixtureTokenStats) and stats.jensen_shannon is not None
    return stats.jensen_shannon


def by_hand(case: Case, weight: float) -> np.ndarray[Any, Any]:
    """w·KL(reference‖m) + (1 − w)·KL(policy‖m), m = w·reference + (1 − w)·policy, over what either supports."""
    logits = [
        oracle.head_logits(h, head.weight, head.bias, head.scale, head.softcap)
        for h, head in ((case.hidden, case.head), (case.reference_hidden, case.reference_head))
    ]
    p, q = (np.exp(oracle.log_probabilities(oracle.as_array(z))) for z in logits)
    m = weight * q + (1 - weight) * p

    def kl(a: Any) -> Any:
        safe = np.where(a > 0, a, 1.0)
        return (a * (np.log(safe) - np.log(np.where(a > 0, m, 1.0)))).sum(-1)

    return weight * kl(q) + (1 - weight) * kl(p)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [23, 5])
def test_equals_explicit_sums_and_the_dense_gradients(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(width, monkeypatch)
    case = make_case(kind)
    leaves = case.leaves()
    extras: list[Any] = ["reverse_kl", "policy_entropy", JensenShannon(WEIGHT)]
    tiled, dense = (linear_token_stats(*case.arguments(), extras=extras, impl=i) for i in ("tiled", "dense"))
    for stats in (tiled, dense):
        assert isinstance(stats, MixtureTokenStats) and stats.jensen_shannon is not None
        np.testing.assert_allclose(stats.jensen_shannon.detach(), by_hand(case, WEIGHT), rtol=1e-9, atol=1e-13)
    # Beside all other statistics, and with no gradient for some of the tokens.
    shares = torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((shares * s.jensen_shannon).sum() + s.reverse_kl.sum() - s.forward_kl[0], leaves)  # type: ignore[union-attr, attr-defined, misc]
        for s in (tiled, dense)
    )
    for mine, right in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_gradient_by_differences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(5, monkeypatch)
    case = make_case(kind, tokens=3)

    def divergence(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return mixed(replace(case, hidden=hidden, head=replace(case.head, weight=weight, bias=bias)))

    assert torch.autograd.gradcheck(divergence, tuple(case.leaves()))


def test_limits_are_the_two_kls() -> None:
    """JS/w → KL(reference‖policy) as the reference's share w → 0, and JS/(1 − w) → KL(policy‖reference) as w → 1."""
    case = make_case()
    (hidden, *_) = case.leaves()
    stats = linear_token_stats(*case.arguments(), extras=["reverse_kl"])
    assert stats.reverse_kl is not None
    for share, w, kl in ((1e-9, 1e-9, stats.forward_kl), (1e-9, 1 - 1e-9, stats.reverse_kl)):
        scaled = mixed(case, w) / share
        assert torch.allclose(scaled, kl, rtol=1e-3)
        slopes = [torch.autograd.grad(x.sum(), hidden, retain_graph=True)[0] for x in (scaled, kl)]
        assert torch.allclose(*slopes, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(stats.forward_kl, stats.reverse_kl, rtol=0.1)


@pytest.mark.parametrize("width", [64, 4])
def test_masked_entries_are_finite_and_exact(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked in both models, in the policy alone, and in the reference alone: no 0·∞, neither in value nor gradient."""
    use_tiles_of(width, monkeypatch)
    case = make_case("bias")
    for head, masked in ((case.head, [*range(8), 13]), (case.reference_head, [*range(6), 20])):
        head.bias[masked] = -math.inf  # type: ignore[index]
    leaves = case.leaves()
    found = [mixed(case, impl=impl) for impl in ("tiled", "dense")]
    for value in found:
        np.testing.assert_allclose(value.detach(), by_hand(case, WEIGHT), rtol=1e-9)
        assert (value <= -WEIGHT * math.log(WEIGHT) - (1 - WEIGHT) * math.log(1 - WEIGHT)).all()
    ours, theirs = (torch.autograd.grad(value.sum(), leaves) for value in found)
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.isfinite().all() and torch.allclose(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_small_divergences_are_accurate(dtype: torch.dtype, bound: float) -> None:
    """Near 3e-4 nats beside float64 of the same operands; equal models have none at all."""
    given = oracle.realistic_operands(dtype)
    head, targets = oracle_head(given.weight), given.targets
    case = Case(given.hidden.requires_grad_(), head, given.reference_hidden, head, targets)
    exact = Case(given.hidden.detach().double().requires_grad_(), *wide(case))
    ours, right = mixed(case), mixed(exact, impl="dense")
    assert 1e-5 < right.mean() < 1e-3 and (ours - right).abs().mean() <= bound * right.mean()
    mine, true = (torch.autograd.grad(x.sum(), c.hidden)[0] for x, c in ((ours, case), (right, exact)))
    assert (mine.double() - true).norm() <= bound * true.norm()
    same = replace(case, hidden=given.reference_hidden)
    assert torch.equal(mixed(same), torch.zeros(len(targets)))


def oracle_head(weight: Tensor) -> Any:
    from tdpo import Head

    return Head(weight)


def wide(case: Case) -> tuple[Any, ...]:
    head = oracle_head(case.head.weight.double())
    return head, case.reference_hidden.double(), head, case.targets


def test_what_cannot_be_asked_for_is_refused() -> None:
    case = make_case()
    for weight in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="weight must lie strictly between 0 and 1"):
            JensenShannon(weight)
    two = [JensenShannon(0.3), JensenShannon(0.4)]
    with pytest.raises(ValueError, match="one Jensen–Shannon divergence, got 2"):
        linear_token_stats(*case.arguments(), extras=two)
    with pytest.raises(ValueError, match=r"unknown extras \['js'\]; known are reverse_kl, policy_entropy, and Jensen"):
        token_stats(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1).long(), extras=["js"])  # type: ignore[list-item]
    summary = summarize_reference(case.hidden, case.head, case.targets)
    with pytest.raises(ValueError, match="no Jensen–Shannon divergence; use linear_token_stats"):
        frozen_head_token_stats(case.hidden, case.head, summary, case.targets, extras=[JensenShannon()])


def test_nothing_else_changes_beside_it() -> None:
    case = make_case("all", torch.float32)
    leaves = case.leaves()
    plain = linear_token_stats(*case.arguments(), extras=["reverse_kl", "policy_entropy"])
    beside = linear_token_stats(*case.arguments(), extras=["reverse_kl", "policy_entropy", JensenShannon()])
    for name, value in vars(plain).items():
        assert torch.equal(getattr(beside, name), value)
    assert isinstance(beside, MixtureTokenStats)
    unlearned = replace(beside, jensen_shannon=None)
    for ours, theirs in zip(gradients(leaves, unlearned), gradients(leaves, plain), strict=True):
        assert torch.equal(ours, theirs)
