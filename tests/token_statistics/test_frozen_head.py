"""The reference as a few vectors a token: exact, differentiable, and free of vocabulary-sized work backwards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helpers import oracle
from helpers.head_cases import EXTRAS, FLOAT, LargestTensor, make_head, use_tiles_of
from tdpo import (
    Head,
    ReferenceSummary,
    TokenStats,
    frozen_head_token_stats,
    linear_token_stats,
    summarize_reference,
)
from tdpo.token_statistics import frozen as frozen_head
from tdpo.token_statistics import frozen_reverse

KINDS = ["plain", "bias", "scale"]
TARGETS = torch.tensor([0, 22, 4, 5, 11, 11])  # both ends of the vocabulary and of a tile, one twice
WEIGHTS = torch.linspace(-1, 2, 12).view(2, 6)


def hidden_states(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    policy, reference = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return policy.to(dtype).requires_grad_(), reference.to(dtype)


def both(policy: Tensor, reference: Tensor, head: Head, targets: Tensor = TARGETS) -> TokenStats:
    return frozen_head_token_stats(policy, head, summarize_reference(reference, head, targets), targets)


def gradient(policy: Tensor, stats: TokenStats) -> Tensor:
    """Of a loss that gives both statistics of every token their own weight."""
    weights = WEIGHTS[:, : len(policy)].to(stats.policy_logp.dtype)
    loss = (weights * torch.stack([stats.policy_logp, stats.forward_kl])).sum()
    return torch.autograd.grad(loss, policy)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 23, 5, 1])
def test_equals_the_dense_definition(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(width, monkeypatch)
    head = make_head(kind, 23, 3)
    policy, reference = hidden_states()
    stats = both(policy, reference, head)
    dense = linear_token_stats(policy, head, reference, head, TARGETS, impl="dense")
    for name in ("policy_logp", "reference_logp", "forward_kl"):
        assert torch.allclose(getattr(stats, name), getattr(dense, name), rtol=1e-9, atol=1e-12), name
    assert stats.reverse_kl is None and stats.policy_entropy is None
    assert torch.allclose(gradient(policy, stats), gradient(policy, dense), rtol=1e-9, atol=1e-12)
    assert not stats.reference_logp.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(5, monkeypatch)
    head = make_head(kind, 23, 3)
    policy, reference = hidden_states()

    def outputs(hidden: Tensor) -> tuple[Tensor, Tensor]:
        stats = both(hidden, reference, head)
        return stats.policy_logp, stats.forward_kl

    assert torch.autograd.gradcheck(outputs, (policy,))


def test_the_summary_by_hand() -> None:
    """W = (0, ln 3) and h_ref = 1: q = (1/4, 3/4), e = ¾·ln 3, log Z = ln 4."""
    head = Head(torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64))
    summary = summarize_reference(torch.ones(1, 1).double(), head, torch.tensor([1]))
    assert summary.expected_weight.item() == pytest.approx(0.75 * math.log(3))
    assert summary.offset.item() == pytest.approx(0.75 * math.log(3) - math.log(4))
    assert summary.reference_logp.item() == pytest.approx(math.log(0.75))
    # The policy at h = 0 is uniform: KL(q‖p) = ln 2 − H(q).
    stats = frozen_head_token_stats(torch.zeros(1, 1).double(), head, summary, torch.tensor([1]))
    assert stats.forward_kl.item() == pytest.approx(math.log(2) + math.log(0.25) / 4 + 3 * math.log(0.75) / 4)
    assert stats.policy_logp.item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("weight_dtype", FLOAT)
@pytest.mark.parametrize("dtype", FLOAT)
def test_dtypes(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    head = make_head("plain", 23, 3, weight_dtype)
    policy, reference = hidden_states(dtype)
    summary = summarize_reference(reference.requires_grad_(), head, TARGETS)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert summary.expected_weight.dtype == summary.reference_logp.dtype == wide
    assert summary.offset.dtype == torch.float64
    assert not any(tensor.requires_grad for tensor in vars(summary).values())
    stats = frozen_head_token_stats(policy, head, summary, TARGETS)
    assert stats.policy_logp.dtype == stats.forward_kl.dtype == wide
    exact_head = Head(head.weight.double())
    exact = linear_token_stats(policy.double(), exact_head, reference.double(), exact_head, TARGETS)
    assert torch.allclose(stats.forward_kl.double(), exact.forward_kl, rtol=1e-5, atol=1e-5)
    ours, right = gradient(policy, stats), gradient(policy, exact)
    assert ours.dtype == dtype
    assert (ours - right).abs().max() <= 2 * max(torch.finfo(dtype).eps, 1e-6) * right.abs().max()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.integers(2, 40), st.integers(1, 6), st.integers(0, 99))
def test_any_shape(tokens: int, vocabulary: int, size: int, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, tokens, size, generator=make, dtype=torch.float64)
    head = Head(torch.randn(vocabulary, size, generator=make, dtype=torch.float64))
    targets = torch.randint(0, vocabulary, (tokens,), generator=make)
    with pytest.MonkeyPatch.context() as patch:
        use_tiles_of(7, patch)
        stats = both(policy.requires_grad_(), reference, head, targets)
        dense = linear_token_stats(policy, head, reference, head, targets, impl="dense")
    assert stats.forward_kl.shape == (tokens,)
    assert torch.allclose(stats.forward_kl, dense.forward_kl) and (stats.forward_kl > -1e-9).all()
    assert torch.allclose(stats.policy_logp, dense.policy_logp)
    stats.forward_kl.sum().backward()
    assert policy.grad is not None and policy.grad.shape == policy.shape


@pytest.mark.parametrize("kind", KINDS)
def test_extras_are_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(5, monkeypatch)
    head = make_head(kind, 23, 3)
    policy, reference = hidden_states()
    summary = summarize_reference(reference, head, TARGETS)
    stats = frozen_head_token_stats(policy, head, summary, TARGETS, extras=EXTRAS)
    dense = linear_token_stats(policy, head, reference, head, TARGETS, impl="dense", extras=EXTRAS)
    for name in EXTRAS:
        assert torch.allclose(getattr(stats, name), getattr(dense, name), rtol=1e-9, atol=1e-12), name
    assert stats.policy_entropy is not None and not stats.policy_entropy.requires_grad, (
        "that would be a walk of its own"
    )
    assert torch.allclose(gradient(policy, stats), gradient(policy, dense))
    without = replace(summary, hidden=None)
    assert frozen_head_token_stats(policy, head, without, TARGETS, extras=["policy_entropy"]).reverse_kl is None
    with pytest.raises(ValueError, match="reverse_kl needs the reference's hidden states"):
        frozen_head_token_stats(policy, head, without, TARGETS, extras=EXTRAS)
    with pytest.raises(ValueError, match=r"unknown extras \['entropy'\]"):
        frozen_head_token_stats(policy, head, summary, TARGETS, extras=["entropy"])  # type: ignore[list-item]


def with_reverse(stats: TokenStats, weights: Tensor) -> Tensor:
    """A loss in which a weighted reverse KL stands beside the other two statistics."""
    assert stats.reverse_kl is not None
    return (weights * stats.reverse_kl).sum() + (stats.policy_logp - 0.3 * stats.forward_kl).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [64, 5])
def test_the_gradient_of_the_reverse_kl(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the dense definition, for tokens with a gradient and without one, and by differences."""
    use_tiles_of(width, monkeypatch)
    head = make_head(kind, 23, 3)
    policy, reference = hidden_states()
    weights = torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    summary = summarize_reference(reference, head, TARGETS)

    def ours(hidden: Tensor) -> TokenStats:
        return frozen_head_token_stats(hidden, head, summary, TARGETS, extras=["reverse_kl"])

    dense = linear_token_stats(policy, head, reference, head, TARGETS, impl="dense", extras=["reverse_kl"])
    found, right = (torch.autograd.grad(with_reverse(stats, weights), policy)[0] for stats in (ours(policy), dense))
    assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)
    alone = torch.autograd.grad(ours(policy).reverse_kl.sum(), policy)[0]  # type: ignore[union-attr]
    assert not torch.allclose(alone, torch.autograd.grad(ours(policy).forward_kl.sum(), policy)[0], rtol=0.1)
    assert torch.autograd.gradcheck(lambda hidden: ours(hidden).reverse_kl, (policy,))


def test_the_gradient_of_the_reverse_kl_beside_masked_entries() -> None:
    head = make_head("bias", 23, 3)
    kept = [v for v in range(23) if v not in (0, 7, 22)]
    head.bias[[0, 7, 22]] = -math.inf  # type: ignore[index]
    policy, reference = hidden_states()
    targets = torch.tensor([kept[i] for i in range(6)])
    small = Head(head.weight[kept], head.bias[kept])  # type: ignore[index]
    found = []
    for shared, ids in ((head, targets), (small, torch.arange(6))):
        summary = summarize_reference(reference, shared, ids)
        stats = frozen_head_token_stats(policy, shared, summary, ids, extras=["reverse_kl"])
        found.append(torch.autograd.grad(stats.reverse_kl.sum(), policy)[0])  # type: ignore[union-attr]
    assert found[0].isfinite().all() and torch.allclose(*found)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_small_gradients_of_the_reverse_kl_are_accurate(dtype: torch.dtype, bound: float) -> None:
    """Near 1e-3 nats, of the same operands in float64; what rounds is the result in the dtype of the hidden states."""
    given = oracle.realistic_operands(dtype)
    head, hidden = Head(given.weight), given.hidden.requires_grad_()
    summary = summarize_reference(given.reference_hidden, head, given.targets)
    stats = frozen_head_token_stats(hidden, head, summary, given.targets, extras=["reverse_kl"])
    ours = torch.autograd.grad(stats.reverse_kl.sum(), hidden)[0]  # type: ignore[union-attr]
    wide = given.hidden.detach().double().requires_grad_()
    p, q = (oracle.head_logits(h, given.weight).log_softmax(-1) for h in (wide, given.reference_hidden))
    right = torch.autograd.grad((p.exp() * (p - q)).sum(), wide)[0]
    assert (ours.double() - right).norm() <= bound * right.norm()


def test_a_reverse_kl_that_is_measured_alone_costs_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of a loss on it, only the tokens that it contains are walked over."""
    walked: list[int] = []
    covariance = frozen_reverse._covariance

    def counted(hidden: Tensor, *rest: Any) -> Tensor:
        walked.append(len(hidden))
        return covariance(hidden, *rest)

    monkeypatch.setattr(frozen_reverse, "_covariance", counted)
    policy, reference = hidden_states()
    head = make_head("plain", 23, 3)
    summary = summarize_reference(reference, head, TARGETS)
    plain = frozen_head_token_stats(policy, head, summary, TARGETS)
    stats = frozen_head_token_stats(policy, head, summary, TARGETS, extras=EXTRAS)
    assert torch.equal(gradient(policy, stats), gradient(policy, plain)) and walked == []
    stats = frozen_head_token_stats(policy, head, summary, TARGETS, extras=EXTRAS)
    (stats.forward_kl.sum() + stats.reverse_kl[2:4].sum()).backward()  # type: ignore[index]
    assert walked == [2]


@pytest.mark.parametrize("bounds", [[0, 2048], [0, 700, 1400, 2100, 2107], [0, 5, 9], [0, 3]])
def test_the_likeliest_are_found_wherever_they_stand(bounds: list[int]) -> None:
    """Digits, or words of one language, are neighbours in a vocabulary and likely together; tiles cut anywhere."""
    z = torch.randn(3, bounds[-1])
    z[0, : frozen_head.LIKELIEST // 2] += 50
    z[1, -frozen_head.LIKELIEST :] += 50
    peaks = frozen_head._Peaks()
    for start, end in itertools.pairwise(bounds):
        peaks.add_tile(z[:, start:end], start, end)
    ids, values = peaks.ids_and_logits()
    expected = z.topk(min(frozen_head.LIKELIEST, z.shape[1]), dim=1)
    assert torch.equal(values, expected.values) and torch.equal(ids, expected.indices)


def test_equal_models_have_no_divergence() -> None:
    given = oracle.realistic_operands(torch.float32)
    kl = both(given.hidden, given.hidden, Head(given.weight), given.targets).forward_kl
    assert kl.abs().max() < 1e-5


def test_a_bias_that_masks_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles_of(4, monkeypatch)
    head = make_head("bias", 23, 3)
    masked = [*range(8), 13]
    kept = [v for v in range(23) if v not in masked]
    head.bias[masked] = -math.inf  # type: ignore[index]
    targets = torch.tensor([kept[i] for i in (0, 5, 9, 9, 11, 13)])
    policy, reference = hidden_states()
    stats = both(policy, reference, head, targets)
    small = Head(head.weight[kept], head.bias[kept])  # type: ignore[index]
    removed = both(policy, reference, small, torch.tensor([kept.index(t) for t in targets.tolist()]))
    for ours, theirs in zip(list(vars(stats).values())[:3], list(vars(removed).values())[:3], strict=True):
        assert torch.allclose(ours, theirs)
    assert torch.allclose(gradient(policy, stats), gradient(policy, removed))
    own = both(policy, reference, head, torch.zeros(6, dtype=torch.int64))
    assert (own.policy_logp == -math.inf).all() and own.forward_kl.isfinite().all()


def test_constants_and_far_logits() -> None:
    policy, reference = hidden_states(torch.float32)
    head = make_head("bias", 23, 3, torch.float32)
    before = both(policy, reference, head).forward_kl
    after = both(policy, reference, replace(head, bias=head.bias + 40.0)).forward_kl  # type: ignore[operator]
    assert torch.allclose(before, after, atol=2e-5)
    head.bias[5] = -1000.0  # type: ignore[index]
    stats = both(policy, reference, head)
    dense = linear_token_stats(policy, head, reference, head, TARGETS, impl="dense")
    assert torch.allclose(stats.forward_kl, dense.forward_kl, atol=1e-5)
    assert stats.reference_logp[3] < -900


def test_tokens_are_independent() -> None:
    """Any selection of a summary's rows is the summary of those tokens: a cache may be read in any order."""
    head = make_head("bias", 23, 3)
    policy, reference = hidden_states()
    summary = summarize_reference(reference, head, TARGETS)
    for rows in ([5, 3, 1, 0, 2, 4], [4, 1], [2], []):
        part = ReferenceSummary(*(tensor[rows] for tensor in vars(summary).values()))
        selected = policy.detach()[rows].requires_grad_()
        stats = frozen_head_token_stats(selected, head, part, TARGETS[rows])
        again = both(selected, reference[rows], head, TARGETS[rows])
        assert torch.allclose(stats.forward_kl, again.forward_kl)
        assert torch.allclose(stats.reference_logp, again.reference_logp)
        assert torch.allclose(gradient(selected, stats), gradient(selected, again))


def test_views_of_any_stride() -> None:
    policy, reference = hidden_states()
    head = make_head("plain", 23, 3)
    expected = both(policy, reference, head)
    strided = both(policy.mT.contiguous().mT, reference.mT.contiguous().mT, Head(head.weight.mT.contiguous().mT))
    assert torch.allclose(strided.forward_kl, expected.forward_kl)
    assert torch.allclose(gradient(policy, strided), gradient(policy, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_no_grad_and_checkpointing_change_nothing(dtype: torch.dtype) -> None:
    head = make_head("bias", 23, 3, dtype)
    policy, reference = hidden_states(dtype)
    plain = both(policy, reference, head)
    expected = gradient(policy, plain)
    with torch.autocast("cpu", torch.bfloat16):
        inside = both(policy, reference, head)
        assert torch.equal(gradient(policy, inside), expected)
    with torch.no_grad():
        quiet = both(policy, reference, head)
    assert not quiet.forward_kl.requires_grad
    for name in ("policy_logp", "reference_logp", "forward_kl"):
        assert torch.equal(getattr(inside, name), getattr(plain, name))
        assert torch.equal(getattr(quiet, name), getattr(plain, name))

    def run(hidden: Tensor) -> tuple[Tensor, Tensor]:
        stats = both(hidden, reference, head)
        return stats.policy_logp, stats.forward_kl

    logp, kl = checkpoint(run, policy, use_reentrant=False)
    assert torch.equal(gradient(policy, replace(plain, policy_logp=logp, forward_kl=kl)), expected)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    policy, reference = hidden_states()
    loss = both(policy, reference, make_head("plain", 23, 3)).forward_kl.square().sum()
    (first,) = torch.autograd.grad(loss, policy, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_backward_pass_does_no_work_of_the_vocabularys_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """N = 200, V = 4000, D = 8, tiles of 100: forward at most one tile, backward at most [N, D]."""
    use_tiles_of(100, monkeypatch)
    head, targets = Head(torch.randn(4000, 8)), torch.randint(0, 4000, (200,))
    policy, reference = torch.randn(200, 8, requires_grad=True), torch.randn(200, 8)
    with LargestTensor() as forward:
        stats = both(policy, reference, head, targets)
        loss = stats.policy_logp.sum() + stats.forward_kl.sum()
    with LargestTensor() as backward:
        loss.backward()
    # A view of the head is not memory, but it is an operation's result.
    assert forward.entries <= max(200 * 100, head.weight.numel())
    assert backward.entries == 200 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_kls_are_accurate(dtype: torch.dtype) -> None:
    """Near 1e-3 nats, against float64 of the same operands; a bf16 summary would not do."""
    given = oracle.realistic_operands(dtype)
    exact, head = given.kl(), Head(given.weight)
    assert 5e-4 < exact.mean() < 2e-3
    summary = summarize_reference(given.reference_hidden, head, given.targets)

    def error(used: ReferenceSummary) -> float:
        stats = frozen_head_token_stats(given.hidden, head, used, given.targets)
        return oracle.relative_error(stats.forward_kl, exact)

    assert error(summary) <= 1e-3
    rounded = summary.expected_weight.bfloat16().float()
    change = ((rounded - summary.expected_weight).double() * given.reference_hidden.double()).sum(dim=1)
    assert error(replace(summary, expected_weight=rounded, offset=summary.offset + change)) > 0.02


@dataclass
class Judged:
    """Hidden states of D = 576 on both sides and a head of V = 5000, with the KL and its gradient in float64."""

    hidden: Tensor
    reference: Tensor
    weight: Tensor

    @classmethod
    def of(cls, spread: float, step: float, favoured: float = 0.0) -> Judged:
        """`spread` of the weights, `step` from h to h_ref; the first few hundred entries wider by 1 + `favoured`."""
        make = torch.Generator().manual_seed(2)
        hidden, noise = torch.randn(2, 128, 576, generator=make)
        weight = spread * torch.randn(5000, 576, generator=make)
        wider = 1 + favoured * (-torch.arange(5000) / 200).exp()
        return cls(hidden, hidden + step * noise, weight * wider[:, None])

    def exact(self) -> tuple[Tensor, Tensor]:
        wide, weight = self.hidden.double().requires_grad_(), self.weight.double()
        p, q = (wide @ weight.T).log_softmax(-1), (self.reference.double() @ weight.T).log_softmax(-1)
        kl = (q.exp() * (q - p)).sum(-1)
        return kl.detach(), torch.autograd.grad(kl.sum(), wide)[0]

    def naive(self, hidden: Tensor) -> Tensor:
        return oracle.naive_forward_kl(hidden @ self.weight.T, self.reference @ self.weight.T)

    def frozen(self, hidden: Tensor) -> Tensor:
        return both(hidden, self.reference, Head(self.weight), torch.zeros(128, dtype=torch.int64)).forward_kl

    def error(self, path: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Median relative error of the KL and of its gradient; NaN, which naive code gives some tokens, counts as 1."""
        hidden, (exact, exact_gradient) = self.hidden.clone().requires_grad_(), self.exact()
        kl = path(hidden)
        off = torch.autograd.grad(kl.sum(), hidden)[0] - exact_gradient
        relative = ((kl.detach() - exact) / exact).abs(), off.norm(dim=1) / exact_gradient.norm(dim=1)
        value, gradient = (float(errors.nan_to_num(1.0).median()) for errors in relative)
        return value, gradient


LOOKS_LIKE = {
    "some 7 nats of entropy": Judged.of(0.08, 0.01),
    "some 2 nats": Judged.of(0.2, 0.01),
    # So sure of a token that a KL of a tenth of a nat is a long way from h_ref: e·(h − h_ref) is large, and so is what
    # an error of e makes of it. Positions of SmolLM2 in the middle of a word are like this.
    "half a nat, and far apart": Judged.of(0.5, 0.1),
    # A vocabulary ordered by frequency: nearly all that is likely stands in its first tile.
    "likely tokens side by side": Judged.of(0.2, 0.01, favoured=1.0),
}


@pytest.mark.parametrize("looks", LOOKS_LIKE)
def test_no_less_accurate_than_the_naive_code_in_the_same_precision(looks: str, monkeypatch: Any) -> None:
    """Where few tokens hold the probability, what a product rounds off their logits goes straight into log Z and e."""
    given = LOOKS_LIKE[looks]
    (naive, naive_gradient), (frozen, frozen_gradient) = given.error(given.naive), given.error(given.frozen)
    assert frozen <= naive and frozen_gradient <= naive_gradient
    if looks == "some 2 nats":
        monkeypatch.setattr(frozen_head, "LIKELIEST", 0)
        assert given.error(given.frozen)[0] > 3 * naive
    if looks == "half a nat, and far apart":
        corrected = frozen_head._add_missing_weights
        monkeypatch.setattr(frozen_head, "_add_missing_weights", lambda e, *rest: corrected(e.clone(), *rest))
        assert given.error(given.frozen)[0] > 2 * naive, "e and log Z must be corrected together"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_small_gradients_are_accurate(dtype: torch.dtype, bound: float) -> None:
    given = oracle.realistic_operands(dtype)
    head = Head(given.weight)

    def kl_gradient(kl: Any, hidden: Tensor) -> Tensor:
        return torch.autograd.grad(kl.sum(), hidden)[0]

    wide = given.hidden.double().requires_grad_()
    exact = replace(given, hidden=wide).kl()
    given.hidden.requires_grad_()
    ours = kl_gradient(both(given.hidden, given.reference_hidden, head, given.targets).forward_kl, given.hidden)
    right = kl_gradient(exact, wide)
    assert (ours.double() - right).norm() <= bound * right.norm()
