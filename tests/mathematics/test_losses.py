"""The losses: values by hand, the identities between them, and what their gradients do to a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdpo import (
    PairScores,
    PreferenceLoss,
    TokenStats,
    dpo_loss,
    f_dpo_loss,
    ipo_loss,
    score_pairs,
    sft_loss,
    simpo_loss,
    tdpo1_loss,
    tdpo2_loss,
    token_stats,
)
from tdpo.kl_choices import KLTerm
from tdpo.losses import beside_kl, pair_kl

NAMES = ("chosen_log_ratio", "rejected_log_ratio", "chosen_sequence_kl", "rejected_sequence_kl")
Loss = Callable[..., PreferenceLoss]


def tdpo2_half(scores: PairScores, **options: float) -> PreferenceLoss:
    return tdpo2_loss(scores, alpha=0.5, **options)  # type: ignore[arg-type]


LOSSES: list[Loss] = [dpo_loss, tdpo1_loss, tdpo2_half]


def scores_of(*values: float | list[float]) -> PairScores:
    tensors = [torch.tensor(v if isinstance(v, list) else [v], dtype=torch.float64) for v in values]
    return PairScores(*(t.requires_grad_() for t in tensors))


def gradients(loss: PreferenceLoss, scores: PairScores) -> dict[str, float]:
    found = torch.autograd.grad(
        loss.per_pair.sum(), [getattr(scores, n) for n in NAMES], allow_unused=True, retain_graph=True
    )
    return {n: 0.0 if g is None else g.item() for n, g in zip(NAMES, found, strict=True)}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("direction", "mine"), [("forward", [1.0, 2.0, 4.0]), ("reverse", [0.5, 3.0, 8.0])])
def test_a_kl_beside_a_loss_by_hand(direction: Any, mine: list[float]) -> None:
    """Two tokens of the chosen response and one of the rejected; the sum over each, and the mean of the two sums."""
    zeros = torch.zeros(3, dtype=torch.float64)
    kls = {name: torch.tensor(values, requires_grad=True) for name, values in (
        ("forward_kl", [1.0, 2.0, 4.0]), ("reverse_kl", [0.5, 3.0, 8.0])
    )}  # fmt: skip
    stats, index = TokenStats(zeros, zeros, **kls), torch.tensor([0, 0, 1])
    loss = dpo_loss(score_pairs(stats, index, 1), beta=0.1)
    for on, kl, share in (
        ("chosen", mine[0] + mine[1], [1, 1, 0]), ("rejected", mine[2], [0, 0, 1]), ("both", sum(mine) / 2, [0.5] * 3),
    ):  # fmt: skip
        beside = beside_kl(loss, pair_kl(stats, index, 1, KLTerm(direction, on)), 0.3)  # type: ignore[arg-type]
        assert beside.kl_term.item() == kl
        assert beside.per_pair.item() == pytest.approx(math.log(2) + 0.3 * kl)
        assert (beside.margin is loss.margin) and (beside.chosen_reward is loss.chosen_reward)
        found = torch.autograd.grad(beside.per_pair.sum(), [*kls.values()], allow_unused=True)
        of_kl, of_other = found if direction == "forward" else found[::-1]
        assert of_kl.tolist() == pytest.approx([0.3 * x for x in share]) and of_other is None


def test_a_kl_that_cannot_stand_beside_a_loss_is_refused() -> None:
    zeros = torch.zeros(1, dtype=torch.float64)
    stats, index = TokenStats(zeros, zeros, zeros), torch.tensor([0])
    with pytest.raises(ValueError, match=r"direction reverse needs statistics with extras=\['reverse_kl'\]"):
        pair_kl(stats, index, 1, KLTerm("reverse"))
    loss = sft_loss(score_pairs(stats, index, 1))
    for coefficient in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="coefficient must be finite and > 0"):
            beside_kl(loss, zeros, coefficient)
        with pytest.raises(ValueError, match=r"kl\.coefficient must be finite and > 0"):
            KLTerm(coefficient=coefficient)
    for wrong in ({"direction": "backward"}, {"on": "winner"}):
        with pytest.raises(ValueError, match=rf"kl\.{next(iter(wrong))} must be one of"):
            KLTerm(**wrong)  # type: ignore[arg-type]


def test_f_dpo_by_hand() -> None:
    """Ratios of responses u_w = 2 and u_l = 1/4; the derivatives of f as the paper's table has them."""
    scores = scores_of(math.log(2), math.log(0.25), 0.7, 0.1)
    for divergence, f_prime in (("forward", lambda u: -1 / u), ("js", lambda u: math.log(2 * u / (1 + u)))):
        loss = f_dpo_loss(scores, beta=0.3, divergence=divergence)  # type: ignore[arg-type]
        margin = 0.3 * (f_prime(2) - f_prime(0.25))
        assert loss.margin.item() == pytest.approx(margin)
        assert loss.per_pair.item() == pytest.approx(-math.log(sigmoid(margin)))
        # d f′/d log u = u·f″(u): 1/u, and 1/(1 + u).
        slope = (lambda u: 1 / u) if divergence == "forward" else (lambda u: 1 / (1 + u))
        pull = 0.3 * sigmoid(-margin)
        assert list(gradients(loss, scores).values()) == pytest.approx([-pull * slope(2), pull * slope(0.25), 0, 0])


def test_f_dpo_far_away_and_refused() -> None:
    """A rejected response that the policy has left by 100 nats: 1/u is beyond float32, and no gradient may be NaN."""
    scores = PairScores(*(torch.tensor([x], requires_grad=True) for x in (0.0, -100.0, 0.0, 0.0)))
    for divergence in ("forward", "js"):
        loss = f_dpo_loss(scores, beta=0.1, divergence=divergence)  # type: ignore[arg-type]
        assert loss.per_pair.dtype == torch.float32 and loss.per_pair.isfinite() and loss.margin.isfinite()
        assert all(math.isfinite(g) for g in gradients(loss, scores).values())
    with pytest.raises(ValueError, match="divergence must be one of forward, js, got 'reverse'"):
        f_dpo_loss(scores, beta=0.1, divergence="reverse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta must be finite and > 0"):
        f_dpo_loss(scores, beta=0.0, divergence="js")


def test_sft_is_the_likelihood_of_the_chosen_response() -> None:
    """The reference's log-probability is a constant: value −log π + log π_ref, gradient that of −log π, none for the
    rejected response and none through the KLs."""
    scores = scores_of(3.0, 1.0, 0.5, 2.0)
    loss = sft_loss(scores)
    assert (loss.per_pair.item(), loss.margin.item()) == (-3.0, 2.0)
    assert (loss.chosen_reward - loss.rejected_reward).item() == loss.margin.item()
    assert list(gradients(loss, scores).values()) == [-1.0, 0.0, 0.0, 0.0]


def simpo_scores(logp: Tensor, lengths: list[int]) -> PairScores:
    """Scores of P pairs from the log-probabilities of their tokens: the chosen responses first, then the rejected."""
    zeros = torch.zeros_like(logp)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    return score_pairs(TokenStats(logp, zeros - 5.0, zeros + 0.3), index, len(lengths) // 2)


def test_simpo_by_hand() -> None:
    """Equation 6, two pairs of ragged lengths: means of −1 and −2, of −0.5 and −4; β = 2.5 and γ = 1.2. The reference
    does not enter, and a token of a long response has a small share of the gradient."""
    logp = torch.tensor([-0.5, -1.5, -2.0, -0.5, -1.0, -2.0, -3.0, -4.0, -4.0], dtype=torch.float64, requires_grad=True)
    lengths = [2, 2, 3, 2]
    scores = simpo_scores(logp, lengths)
    loss = simpo_loss(scores, beta=2.5, gamma=1.2)
    means = [-1.0, -1.25, -2.0, -4.0]
    assert [*loss.chosen_reward.tolist(), *loss.rejected_reward.tolist()] == pytest.approx([2.5 * m for m in means])
    margins = [2.5 * (-1.0 + 2.0), 2.5 * (-1.25 + 4.0)]
    assert loss.margin.tolist() == pytest.approx(margins), "γ is not in it"
    assert loss.per_pair.tolist() == pytest.approx([-math.log(sigmoid(m - 1.2)) for m in margins])
    pull = [2.5 * sigmoid(1.2 - m) for m in margins]
    (found,) = torch.autograd.grad(loss.per_pair.sum(), logp, retain_graph=True)
    shares = [-pull[0] / 2] * 2 + [-pull[1] / 2] * 2 + [pull[0] / 3] * 3 + [pull[1] / 2] * 2
    assert found.tolist() == pytest.approx(shares)
    ours = (scores.chosen_log_ratio, scores.rejected_log_ratio, scores.chosen_sequence_kl, scores.rejected_sequence_kl)
    moved = PairScores(*(t + 7.0 for t in ours), scores.chosen_logp, scores.rejected_logp, scores.chosen_tokens,
                       scores.rejected_tokens)  # fmt: skip
    assert torch.equal(simpo_loss(moved, beta=2.5, gamma=1.2).per_pair, loss.per_pair)
    assert torch.autograd.gradcheck(lambda x: simpo_loss(simpo_scores(x, lengths), beta=2.5, gamma=1.2).per_pair, logp)


def test_simpo_without_tokens_and_refused() -> None:
    """An empty response has the reward 0, no gradient and no NaN, on either side; so has a pair of two."""
    for lengths, margin in (([0, 2], 2.0 * 1.5), ([2, 0], -2.0 * 1.5), ([0, 0], 0.0)):
        logp = torch.tensor([-1.0, -2.0][: sum(lengths)], requires_grad=True)
        loss = simpo_loss(simpo_scores(logp, lengths), beta=2.0, gamma=0.0)
        assert loss.margin.item() == pytest.approx(margin)
        assert loss.per_pair.item() == pytest.approx(-math.log(sigmoid(margin)), rel=1e-5)
        (found,) = torch.autograd.grad(loss.per_pair.sum(), logp)
        assert found.isfinite().all()
    assert simpo_loss(simpo_scores(torch.zeros(0), []), beta=2.0, gamma=1.0).per_pair.shape == (0,)
    far = simpo_loss(simpo_scores(torch.tensor([-1e6, -1.0]), [1, 1]), beta=10.0, gamma=5.0)
    assert far.per_pair.item() == pytest.approx(1e7), "linear, not infinite"
    scores = simpo_scores(torch.zeros(2), [1, 1])
    for gamma in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"gamma must be finite and ≥ 0, got {gamma}"):
            simpo_loss(scores, beta=2.0, gamma=gamma)
    with pytest.raises(ValueError, match="beta must be finite and > 0"):
        simpo_loss(scores, beta=0.0, gamma=1.0)
    with pytest.raises(ValueError, match="make the scores with score_pairs"):
        simpo_loss(scores_of(0.0, 0.0, 0.0, 0.0), beta=2.0, gamma=1.0)


def test_ipo_by_hand() -> None:
    """h = 3 − 1 = 2 and β = 0.4, so 1/(2β) = 1.25: loss (2 − 1.25)², slope 2·0.75; the KLs do not enter."""
    scores = scores_of(3.0, 1.0, 0.5, 2.0)
    loss = ipo_loss(scores, beta=0.4)
    assert loss.per_pair.item() == pytest.approx(0.5625)
    assert (loss.chosen_reward.item(), loss.rejected_reward.item()) == pytest.approx((1.2, 0.4))
    assert torch.equal(loss.margin, loss.chosen_reward - loss.rejected_reward)
    assert list(gradients(loss, scores).values()) == pytest.approx([1.5, -1.5, 0.0, 0.0])
    at_the_start = ipo_loss(scores_of(0.0, 0.0, 0.0, 0.0), beta=0.1)
    assert at_the_start.per_pair.item() == pytest.approx(25.0)
    ratios = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *s: ipo_loss(PairScores(*s), beta=0.7).per_pair, ratios)


def test_the_table_of_the_fast_paths_has_ipos_slope() -> None:
    """∂ℓ/∂margin = 2·(margin − ½)/β², which is what docs/the_fast_paths.md writes as g."""
    scores = scores_of(3.0, 1.0, 0.0, 0.0)
    loss = ipo_loss(scores, beta=0.4)
    g = 2 * (loss.margin.item() - 0.5) / 0.4**2
    assert gradients(loss, scores)["chosen_log_ratio"] == pytest.approx(0.4 * g)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_ipo_is_least_where_the_margin_is_a_half(beta: float) -> None:
    best = scores_of(0.5 / beta + 1.0, 1.0, 0.0, 0.0)
    loss = ipo_loss(best, beta=beta)
    assert loss.per_pair.item() == pytest.approx(0.0, abs=1e-20) and loss.margin.item() == pytest.approx(0.5)
    assert gradients(loss, best)["chosen_log_ratio"] == pytest.approx(0.0, abs=1e-9)
    for off in (-0.3, 0.3):
        away = ipo_loss(scores_of(0.5 / beta + 1.0 + off, 1.0, 0.0, 0.0), beta=beta)
        assert away.per_pair.item() == pytest.approx(0.09), "too far is as bad as not far enough"


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ipo_ends_at_the_papers_optimum(beta: float) -> None:
    """Pairs of three one-token responses, drawn uniformly, y preferred to y' with probability `prefers`: the minimum
    is π ∝ π_ref·exp(E_y'[p(y ≻ y')]/τ), the paper's closed form with Ψ the identity. These go in a circle."""
    reference = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    prefers = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 1.0], [0.8, 0.0, 0.5]], dtype=torch.float64)
    chosen, rejected = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    policy = reference.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [policy], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        search.zero_grad()
        tokens = torch.cat([chosen, rejected])
        stats = token_stats(policy.expand(18, 3), reference.expand(18, 3), tokens)
        loss = (prefers.flatten() * ipo_loss(score_pairs(stats, torch.arange(18), 9), beta=beta).per_pair).sum()
        loss.backward()
        return loss

    search.step(objective)
    expected = (reference + prefers.mean(dim=1) / beta).softmax(-1)
    torch.testing.assert_close(policy.detach().softmax(-1), expected, rtol=1e-6, atol=1e-8)


def test_smoothed_labels_would_be_another_beta_for_ipo() -> None:
    """Which is why there is no such argument: (1 − ε)·ℓ(h) + ε·ℓ(−h) is the loss with β/(1 − 2ε), plus a constant."""
    kls = [0.0] * 3
    right, swapped = scores_of([3.0, -1.0, 7.0], [0.0] * 3, kls, kls), scores_of([0.0] * 3, [3.0, -1.0, 7.0], kls, kls)
    mixed = 0.9 * ipo_loss(right, beta=0.4).per_pair + 0.1 * ipo_loss(swapped, beta=0.4).per_pair
    gap = mixed - ipo_loss(right, beta=0.4 / 0.8).per_pair
    torch.testing.assert_close(gap, gap[:1].expand(3))
    with pytest.raises(TypeError, match="label_smoothing"):
        ipo_loss(right, beta=0.4, label_smoothing=0.1)  # type: ignore[call-arg]


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-3, 10))
def test_ipo_beside_the_margin(w: float, l: float, beta: float) -> None:  # noqa: E741
    """β²·loss = (margin − ½)²; a pair with less loss than at the start is ranked correctly."""
    loss = ipo_loss(scores_of(w, l, 0.0, 0.0), beta=beta)
    margin, value = loss.margin.item(), loss.per_pair.item()
    assert torch.equal(loss.margin, loss.chosen_reward - loss.rejected_reward)
    assert beta**2 * value == pytest.approx((margin - 0.5) ** 2, rel=1e-6, abs=1e-9)
    assert margin > 0 or beta**2 * value >= 0.25 - 1e-9


def test_values_and_gradients_by_hand() -> None:
    """h = 3 − 1 = 2, D_w = 0.5, D_l = 2, β = 0.4, α = 0.5."""
    scores = scores_of(3.0, 1.0, 0.5, 2.0)
    dpo, tdpo1, tdpo2 = (f(scores, beta=0.4) for f in LOSSES)
    margins = {"dpo": 0.8, "tdpo1": 0.4 * (2 - 1.5), "tdpo2": 0.4 * (2 - 0.75)}
    for loss, margin in zip((dpo, tdpo1, tdpo2), margins.values(), strict=True):
        assert loss.margin.item() == pytest.approx(margin)
        assert loss.per_pair.item() == pytest.approx(-math.log(sigmoid(margin)))
    assert (dpo.chosen_reward.item(), dpo.rejected_reward.item()) == pytest.approx((1.2, 0.4))
    assert (tdpo1.chosen_reward.item(), tdpo1.rejected_reward.item()) == pytest.approx((1.4, 1.2))
    assert (tdpo2.chosen_reward.item(), tdpo2.rejected_reward.item()) == pytest.approx((1.3, 0.8))

    push = {name: 0.4 * sigmoid(-margin) for name, margin in margins.items()}  # −∂loss/∂h
    assert list(gradients(dpo, scores).values()) == pytest.approx([-push["dpo"], push["dpo"], 0, 0])
    one = push["tdpo1"]
    assert list(gradients(tdpo1, scores).values()) == pytest.approx([-one, one, -one, one])
    two = push["tdpo2"]
    assert list(gradients(tdpo2, scores).values()) == pytest.approx([-two, two, 0.0, 0.5 * two])


def test_label_smoothing_by_hand() -> None:
    scores = scores_of(3.0, 1.0, 0.5, 2.0)
    for loss in LOSSES:
        plain, smooth = loss(scores, beta=0.4), loss(scores, beta=0.4, label_smoothing=0.1)
        margin = plain.margin.item()
        expected = -0.9 * math.log(sigmoid(margin)) - 0.1 * math.log(sigmoid(-margin))
        assert smooth.per_pair.item() == pytest.approx(expected)
        assert torch.equal(smooth.margin, plain.margin)
        slope = -0.9 * sigmoid(-margin) + 0.1 * sigmoid(margin)
        assert gradients(smooth, scores)["chosen_log_ratio"] == pytest.approx(0.4 * slope)


values = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)
divergences = st.lists(st.floats(0, 1e3), min_size=3, max_size=3)
betas = st.floats(1e-3, 10)


@settings(deadline=None, max_examples=60)
@given(values, values, divergences, divergences, betas, st.floats(1e-3, 3))
def test_identities(w: list, l: list, d_w: list, d_l: list, beta: float, alpha: float) -> None:  # noqa: E741
    scores = scores_of(w, l, d_w, d_l)
    for loss in (*LOSSES, lambda s, beta: tdpo2_loss(s, beta=beta, alpha=alpha)):
        found = loss(scores, beta=beta)
        assert torch.equal(found.margin, found.chosen_reward - found.rejected_reward)
        for margin, value in zip(found.margin.tolist(), found.per_pair.tolist(), strict=True):
            assert value == pytest.approx(math.log1p(math.exp(-abs(margin))) + max(-margin, 0), abs=1e-12)
            # Accuracy (margin > 0) and loss never disagree.
            assert (value < math.log(2)) == (margin > 0) or margin == pytest.approx(0, abs=1e-12)
    one, two = tdpo1_loss(scores, beta=beta), tdpo2_loss(scores, beta=beta, alpha=1.0)
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(two, name)), name


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_alpha_zero_is_dpo_to_the_last_bit(label_smoothing: float) -> None:
    for kl in (1.5, math.inf):
        scores = scores_of(0.3, -0.7, kl, kl)
        ours = tdpo2_loss(scores, beta=0.1, alpha=0.0, label_smoothing=label_smoothing)
        theirs = dpo_loss(scores, beta=0.1, label_smoothing=label_smoothing)
        for name, value in vars(ours).items():
            assert torch.equal(value, getattr(theirs, name)), name
        assert gradients(ours, scores) == gradients(theirs, scores)


def test_alpha_one_is_tdpo1_in_value_and_not_in_gradient() -> None:
    scores = scores_of(0.3, -0.7, 1.0, 2.0)
    one, two = tdpo1_loss(scores, beta=0.1), tdpo2_loss(scores, beta=0.1, alpha=1.0)
    assert torch.equal(one.per_pair, two.per_pair)
    of_one, of_two = gradients(one, scores), gradients(two, scores)
    assert of_two["chosen_sequence_kl"] == 0.0 != of_one["chosen_sequence_kl"]
    assert {n: of_one[n] for n in NAMES if n != "chosen_sequence_kl"} == {
        n: of_two[n] for n in NAMES if n != "chosen_sequence_kl"
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_in_float64(loss: Loss) -> None:
    scores = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    if loss is tdpo2_half:
        scores[2] = scores[2].detach()  # its gradient is stopped, so a finite difference must not look
    for smoothing in (0.0, 0.1):
        assert torch.autograd.gradcheck(
            lambda *s, smoothing=smoothing: loss(PairScores(*s), beta=0.7, label_smoothing=smoothing).per_pair,
            scores,
        )


def test_what_the_losses_do_to_logits() -> None:
    """TDPO1's chosen side is pushed along onehot − π_ref, so nothing limits it; TDPO2's along onehot − π."""
    torch.manual_seed(1)
    policy, reference = torch.randn(2, 5, dtype=torch.float64, requires_grad=True), torch.randn(2, 5).double()
    targets, index = torch.tensor([1, 3]), torch.tensor([0, 1])
    p, q, own = policy.detach().softmax(-1), reference.softmax(-1), torch.eye(5)[targets].double()

    def along(loss: Loss) -> Tensor:
        """The gradient of the loss with respect to the logits, over −β·σ(−margin)."""
        found = loss(score_pairs(token_stats(policy, reference, targets), index, 1), beta=0.1)
        (gradient,) = torch.autograd.grad(found.per_pair.sum(), policy)
        return gradient / (-0.1 * torch.sigmoid(-found.margin.detach()))

    assert torch.allclose(along(dpo_loss), torch.stack([own[0] - p[0], p[1] - own[1]]))
    assert torch.allclose(along(tdpo1_loss), torch.stack([own[0] - q[0], q[1] - own[1]]))
    rejected = -(own[1] - p[1]) - 0.5 * (p[1] - q[1])
    assert torch.allclose(along(tdpo2_half), torch.stack([own[0] - p[0], rejected]))


def test_extremes_of_ipo() -> None:
    assert ipo_loss(scores_of([], [], [], []), beta=0.1).per_pair.shape == (0,)
    for ratio in (1e6, -1e6):  # and a KL that is infinite does not matter
        scores = scores_of(ratio, -ratio, math.inf, math.inf)
        loss = ipo_loss(scores, beta=0.1)
        assert loss.per_pair.isfinite().all() and all(map(math.isfinite, gradients(loss, scores).values()))


@pytest.mark.parametrize("loss", LOSSES)
def test_extremes_stay_numbers(loss: Loss) -> None:
    empty = loss(scores_of([], [], [], []), beta=0.1)
    assert empty.per_pair.shape == (0,)
    no_tokens = loss(scores_of(0.0, 0.0, 0.0, 0.0), beta=0.1)
    assert no_tokens.per_pair.item() == pytest.approx(math.log(2))
    for ratio in (1e6, -1e6):
        scores = scores_of(ratio, -ratio, 5.0, 5.0)
        found = loss(scores, beta=0.1)
        assert found.per_pair.isfinite().all()
        assert all(math.isfinite(g) for g in gradients(found, scores).values())
    # A policy that lost the reference's support on a rejected response is infinitely wrong, not NaN.
    if loss is not dpo_loss:
        lost = scores_of(0.0, 0.0, 0.0, math.inf)
        assert loss(lost, beta=0.1).per_pair.item() == math.inf
        assert not any(math.isnan(g) for g in gradients(loss(lost, beta=0.1), lost).values())


def test_errors_name_what_came_and_what_was_expected() -> None:
    scores = scores_of(0.0, 0.0, 0.0, 0.0)
    for loss in (*LOSSES, ipo_loss):
        for beta in (0.0, -0.1, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"beta must be finite and > 0, got {beta}"):
                loss(scores, beta=beta)
    for loss in LOSSES:
        for smoothing in (-0.1, 0.5, math.nan):
            with pytest.raises(ValueError, match=rf"label_smoothing must lie in \[0, 0.5\), got {smoothing}"):
                loss(scores, beta=0.1, label_smoothing=smoothing)
    for alpha in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"alpha must be finite and ≥ 0, got {alpha}"):
            tdpo2_loss(scores, beta=0.1, alpha=alpha)
