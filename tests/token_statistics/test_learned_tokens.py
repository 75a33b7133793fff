"""The tokens whose KLs are learned from, as a caller names them: the KLs of the others are constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.head_cases import EXTRAS
from helpers.kernel_cases import (
    DEVICE,
    KernelCase,
    any_case,
    frozen_case,
    kernels,  # noqa: F401 - a fixture
    needs_triton,
    quiet,
    relative_difference,
    without_kernels,
)
from tdpo import TokenStats, frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.token_statistics import JensenShannon, frozen_reverse

# One KL alone, both with ranges that overlap and that do not, one at the end, one with nothing in it.
NAMED = [
    {"reverse_kl": range(2)},
    {"forward_kl": range(1, 3), "reverse_kl": range(2, 5)},
    {"forward_kl": range(4, 5), "reverse_kl": range(1)},
    {"forward_kl": range(0), "reverse_kl": range(1, 4)},
]


def statistics(case: KernelCase, head: str, **options: Any) -> TokenStats:
    if head == "any":
        return linear_token_stats(*case.arguments(), **options)
    summary = summarize_reference(case.reference, case.head, case.targets)
    return frozen_head_token_stats(case.hidden, case.head, summary, case.targets, **options)


def loss(stats: TokenStats, learned: dict[str, range]) -> Tensor:
    """Every token with a weight of its own in log-probability and KLs, but for those that are not learned from."""
    weights = torch.linspace(0.5, 2.0, len(stats.policy_logp), device=stats.policy_logp.device)
    total = (weights * stats.policy_logp).sum()
    for name in ("forward_kl", "reverse_kl"):
        kl, tokens = getattr(stats, name), learned.get(name, range(len(weights)))
        total = total + (weights.flip(0) * kl)[tokens.start : tokens.stop].sum()
    return total


@quiet
@pytest.mark.parametrize("learned", NAMED, ids=str)
@pytest.mark.parametrize("head", ["any", "frozen"])
@pytest.mark.parametrize("walk", ["plain", pytest.param("kernels", marks=needs_triton)])
def test_a_kl_is_a_constant_elsewhere(
    kernels: pytest.MonkeyPatch,  # noqa: F811
    walk: str,
    head: str,
    learned: dict[str, range],
) -> None:
    if walk == "plain":
        without_kernels(kernels)
    case = (any_case if head == "any" else frozen_case)(torch.float32, tokens=5)
    wide = case.wide()
    leaves, wide_leaves = case.leaves(head == "any"), wide.leaves(head == "any")
    stats = statistics(case, head, extras=("reverse_kl",), learned_tokens=learned)
    everywhere = loss(stats, {})  # also of tokens that are not named
    exact = linear_token_stats(*wide.arguments(), extras=("reverse_kl",), impl="dense")
    right = torch.autograd.grad(loss(exact, learned), wide_leaves)
    assert torch.allclose(everywhere.double(), loss(exact, {}), rtol=1e-5), "values are what they are"
    for mine, theirs in zip(torch.autograd.grad(everywhere, leaves), right, strict=True):
        assert relative_difference(mine, theirs) < 1e-5


def test_a_loss_on_the_reverse_kl_walks_over_the_named_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    covariance = frozen_reverse._covariance

    def counted(hidden: Tensor, *rest: Any) -> Tensor:
        walked.append(len(hidden))
        return covariance(hidden, *rest)

    monkeypatch.setattr(frozen_reverse, "_covariance", counted)
    case = frozen_case(torch.float32, tokens=5)
    case.leaves(trained_head=False)
    for learned in ({}, {"reverse_kl": range(1, 3)}, {"reverse_kl": range(0)}):
        stats = statistics(case, "frozen", extras=EXTRAS, learned_tokens=learned)
        (stats.forward_kl.sum() + stats.reverse_kl.sum()).backward()  # type: ignore[union-attr]
    assert walked == [5, 2]


@pytest.mark.parametrize(
    ("named", "extras", "message"),
    [
        ({"policy_entropy": range(1)}, EXTRAS, "it can name forward_kl, reverse_kl$"),
        ({"reverse_kl": range(1)}, (), "'reverse_kl', which is not computed; it can name forward_kl$"),
        ({"forward_kl": range(2, 6)}, (), r"within \[0, 5\) of step 1, got range\(2, 6\)"),
        ({"forward_kl": range(-1, 2)}, (), r"got range\(-1, 2\)"),
        ({"jensen_shannon": range(0, 5, 2)}, (JensenShannon(),), r"got range\(0, 5, 2\)"),
    ],
    ids=str,
)
def test_what_cannot_be_learned_from_is_refused(named: Any, extras: Any, message: str) -> None:
    case = any_case(torch.float32, tokens=5)
    with pytest.raises(ValueError, match=message):
        linear_token_stats(*case.arguments(), extras=extras, learned_tokens=named)
    if "jensen_shannon" not in named:
        shared = frozen_case(torch.float32, tokens=5)
        with pytest.raises(ValueError, match=message):
            statistics(shared, "frozen", extras=extras, learned_tokens=named)


@quiet
@pytest.mark.parametrize("walk", ["plain", pytest.param("kernels", marks=needs_triton)])
def test_a_divergence_of_the_mixture_is_a_constant_elsewhere_too(
    kernels: pytest.MonkeyPatch,  # noqa: F811
    walk: str,
) -> None:
    if walk == "plain":
        without_kernels(kernels)
    case = any_case(torch.float32, tokens=5)
    leaves, found = case.leaves(), []
    for impl in ("tiled", "dense"):
        named = {"jensen_shannon": range(3, 5), "forward_kl": range(1)}
        stats: Any = linear_token_stats(
            *case.arguments(), extras=(JensenShannon(0.3),), impl=impl, learned_tokens=named
        )
        total = 2 * stats.jensen_shannon.sum() + stats.forward_kl.sum()
        cut = 2 * stats.jensen_shannon[3:].sum() + stats.forward_kl[:1].sum()
        found += [torch.autograd.grad(each, leaves, retain_graph=True) for each in (total, cut)]
    for each in found[1:]:
        assert all(relative_difference(a, b) < 1e-5 for a, b in zip(each, found[0], strict=True)), DEVICE
