"""The dense definition and the head: the oracle of the other paths is itself proven here."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from helpers import oracle
from tdpo import (
    Head,
    TokenStats,
    frozen_head_token_stats,
    linear_token_stats,
    summarize_reference,
    token_stats,
)

INF = math.inf
EXTRAS = ("reverse_kl", "policy_entropy")


def columns(stats: TokenStats) -> dict[str, Tensor]:
    return {f.name: getattr(stats, f.name) for f in fields(stats)}


def test_values_by_hand() -> None:
    ln = math.log
    policy = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
    reference = torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.2, 0.6]], dtype=torch.float64).log()
    stats = token_stats(policy, reference, torch.tensor([0, 2]), extras=EXTRAS)
    expected = {
        "policy_logp": [ln(1 / 2), ln(3 / 5)],
        "reference_logp": [ln(1 / 4), ln(3 / 5)],
        "forward_kl": [ln(1 / 2) / 4 + ln(2) / 2, 0.0],
        "reverse_kl": [ln(2) / 2 + ln(1 / 2) / 4, 0.0],
        "policy_entropy": [1.5 * ln(2), -0.4 * ln(0.2) - 0.6 * ln(0.6)],
    }
    for name, value in columns(stats).items():
        assert value.tolist() == pytest.approx(expected[name]), name


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float64, (2, 3, 5), elements=st.floats(-40, 40)),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_agrees_with_the_oracle(logits: np.ndarray, targets: list[int]) -> None:
    policy, reference = torch.from_numpy(logits)
    own = torch.tensor(targets)
    expected = oracle.statistics(policy, reference, own)
    for name, value in columns(token_stats(policy, reference, own, extras=EXTRAS)).items():
        np.testing.assert_allclose(value.numpy(), getattr(expected, name), rtol=1e-9, atol=1e-12)
    for name, value in columns(token_stats(policy.float(), reference.float(), own, extras=EXTRAS)).items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_extras_are_made_only_when_asked_for() -> None:
    logits, targets = torch.randn(2, 5), torch.tensor([0, 1])
    plain = token_stats(logits, logits, targets)
    assert plain.reverse_kl is None and plain.policy_entropy is None
    one = token_stats(logits, logits, targets, extras=["policy_entropy"])
    assert one.reverse_kl is None and one.policy_entropy is not None


def test_gradients_reach_the_policy_and_never_the_reference() -> None:
    policy, reference = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    targets = torch.tensor([4, 0, 2])

    def outputs(z: Tensor) -> tuple[Tensor, ...]:
        stats = token_stats(z, reference, targets, extras=EXTRAS)
        assert not stats.reference_logp.requires_grad
        return stats.policy_logp, stats.forward_kl, stats.reverse_kl, stats.policy_entropy  # type: ignore[return-value]

    assert torch.autograd.gradcheck(outputs, (policy,))
    sum(o.sum() for o in outputs(policy)).backward()  # type: ignore[union-attr]
    assert reference.grad is None


def test_masked_vocabulary() -> None:
    """−inf in both models adds nothing; in the policy only it makes that token's KL +inf and no other NaN."""
    policy = torch.tensor([[0.0, 1.0, -INF], [0.0, -INF, 2.0], [1.0, 2.0, 3.0]], requires_grad=True)
    reference = torch.tensor([[1.0, 0.0, -INF], [0.0, 1.0, 2.0], [3.0, 2.0, -1000.0]])
    targets = torch.tensor([2, 0, 0])
    stats = token_stats(policy, reference, targets, extras=EXTRAS)
    assert stats.policy_logp[0] == stats.reference_logp[0] == -INF
    assert stats.forward_kl[1] == INF
    expected = oracle.statistics(policy, reference, targets)
    for name, value in columns(stats).items():
        np.testing.assert_allclose(value.detach().numpy(), getattr(expected, name), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(stats.forward_kl[[0, 2]].sum() + stats.policy_logp[1:].sum(), policy)
    assert gradient.isfinite().all()


def test_no_tokens() -> None:
    policy = torch.randn(0, 5, requires_grad=True)
    stats = token_stats(policy, torch.randn(0, 5), torch.empty(0, dtype=torch.int64), extras=EXTRAS)
    assert all(value.shape == (0,) for value in columns(stats).values())
    stats.forward_kl.sum().backward()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_heads_logits(bias: bool, scale: float, softcap: float | None) -> None:
    hidden, weight = torch.randn(4, 3), torch.randn(6, 3)
    shift = torch.randn(6) if bias else None
    expected = oracle.head_logits(hidden, weight, shift, scale, softcap)
    for dtype in (torch.float32, torch.float64):
        logits = Head(weight, shift, scale, softcap).logits(hidden.to(dtype))
        assert logits.dtype == dtype
        assert torch.allclose(logits.double(), expected, atol=1e-5)
    half = Head(weight.bfloat16(), shift, scale, softcap).logits(hidden.bfloat16())
    exact = oracle.head_logits(hidden.bfloat16(), weight.bfloat16(), shift, scale, softcap)
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), exact, atol=1e-5), "logits of bf16 operands must not be rounded to bf16"


def test_impossible_heads_are_refused() -> None:
    weight = torch.zeros(6, 3)
    with pytest.raises(ValueError, match=r"\[V, D\], got shape \(3,\)"):
        Head(torch.zeros(3))
    with pytest.raises(ValueError, match=r"\[V\] = \[6\], got \(3,\)"):
        Head(weight, torch.zeros(3))
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        Head(weight, scale=math.nan)
    for softcap in (0.0, -1.0, INF, math.nan):
        with pytest.raises(ValueError, match=f"positive and finite, or None, got {softcap}"):
            Head(weight, softcap=softcap)


HIDDEN, HEAD, TARGETS = torch.zeros(4, 3), Head(torch.zeros(6, 3)), torch.tensor([0, 1, 2, 5])


def linear(**changed: Any) -> TokenStats:
    given: dict[str, Any] = {
        "policy_hidden": HIDDEN, "policy_head": HEAD, "reference_hidden": HIDDEN, "reference_head": HEAD,
        "targets": TARGETS,
    }  # fmt: skip
    return linear_token_stats(**(given | changed))


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy_hidden": torch.zeros(4, 2)}, r"policy_hidden must be \[N, 3\].*got \(4, 2\)"),
        ({"reference_hidden": torch.zeros(3)}, r"reference_hidden must be \[N, 3\].*got \(3,\)"),
        ({"reference_hidden": torch.zeros(5, 3)}, "holds 4 tokens, reference_hidden 5"),
        (
            {"reference_head": Head(torch.zeros(7, 3))},
            "has 6 vocabulary entries and the reference's 7.*tokenizer",
        ),
        ({"targets": TARGETS[:3]}, r"\[N\] = \[4\], got \(3,\)"),
        ({"targets": TARGETS[:, None]}, r"\[N\] = \[4\], got \(4, 1\)"),
        ({"targets": TARGETS + 1}, r"\[0, 6\), got values from 1 to 6"),
        ({"targets": TARGETS - 100}, r"got values from -100 to -95. Padding \(-100\) does not belong here"),
        ({"extras": ["entropy"]}, r"unknown extras \['entropy'\]; known are reverse_kl, policy_entropy"),
    ],
)
def test_errors_of_linear_token_stats(impl: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(**changed, impl=impl)


def test_errors_of_the_others() -> None:
    with pytest.raises(ValueError, match="impl must be one of auto, tiled, dense, got 'fast'"):
        linear(impl="fast")
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(4, 7\). Do the two models share a vocabulary"):
        token_stats(torch.zeros(4, 6), torch.zeros(4, 7), TARGETS)
    with pytest.raises(ValueError, match=r"must both be \[N, V\], got \(2, 4, 6\)"):
        token_stats(torch.zeros(2, 4, 6), torch.zeros(2, 4, 6), TARGETS)
    with pytest.raises(ValueError, match=r"\[0, 6\), got values from 0 to 9"):
        token_stats(torch.zeros(4, 6), torch.zeros(4, 6), torch.tensor([0, 1, 2, 9]))
    with pytest.raises(ValueError, match="unknown extras"):
        token_stats(torch.zeros(4, 6), torch.zeros(4, 6), TARGETS, extras=["forward_kl"])  # type: ignore[list-item]


def test_errors_of_the_frozen_head() -> None:
    summary = summarize_reference(HIDDEN, HEAD, TARGETS)
    capped = Head(HEAD.weight, softcap=30.0)
    with pytest.raises(ValueError, match=r"softcap has no exact summary.*use linear_token_stats"):
        summarize_reference(HIDDEN, capped, TARGETS)
    with pytest.raises(ValueError, match="softcap has no exact summary"):
        frozen_head_token_stats(HIDDEN, capped, summary, TARGETS)
    with pytest.raises(ValueError, match=r"reference_hidden must be \[N, 3\].*got \(4, 2\)"):
        summarize_reference(HIDDEN[:, :2], HEAD, TARGETS)
    with pytest.raises(ValueError, match=r"policy_hidden must be \[N, 3\].*got \(4, 2\)"):
        frozen_head_token_stats(HIDDEN[:, :2], HEAD, summary, TARGETS)
    with pytest.raises(ValueError, match=r"holds \(4, 3\) for hidden states \(3, 3\)"):
        frozen_head_token_stats(HIDDEN[:3], HEAD, summary, TARGETS[:3])
    trained = torch.zeros(6, 3, requires_grad=True)
    for head in (Head(trained), Head(HEAD.weight, trained[:, 0])):
        with pytest.raises(ValueError, match=r"requires a gradient.*freeze it or use linear_token_stats"):
            frozen_head_token_stats(HIDDEN, head, summary, TARGETS)
