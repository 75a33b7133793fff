"""Sums of token statistics into pairs: by hand, against loops, and where there is nothing to sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdpo import PairScores, TokenStats, score_pairs, token_stats
from tdpo.scores import sum_by_sequence

INF = math.inf


def stats_of(policy: list[float], reference: list[float], kl: list[float]) -> TokenStats:
    return TokenStats(*(torch.tensor(v, dtype=torch.float64) for v in (policy, reference, kl)))


def test_values_by_hand() -> None:
    """Two pairs, tokens interleaved: chosen of pair 0 is sequence 0, of pair 1 is 1; rejected are 2 and 3."""
    stats = stats_of([-1.0, -2.0, -3.0, -4.0, -5.0], [-1.5, -1.0, -3.5, -4.0, -4.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    scores = score_pairs(stats, torch.tensor([0, 3, 1, 0, 2]), num_pairs=2)
    assert scores.chosen_log_ratio.tolist() == pytest.approx([0.5 + 0.0, 0.5])
    assert scores.rejected_log_ratio.tolist() == pytest.approx([-1.0, -1.0])
    assert scores.chosen_sequence_kl.tolist() == pytest.approx([0.5, 0.3])
    assert scores.rejected_sequence_kl.tolist() == pytest.approx([0.5, 0.2])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 0), st.floats(-9, 0), st.floats(0, 9)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_sums_are_those_of_a_loop_in_any_order(tokens: list, random: object) -> None:
    def scores(rows: list) -> PairScores:
        sequence, policy, reference, kl = zip(*rows, strict=True) if rows else ((), (), (), ())
        index = torch.tensor(sequence, dtype=torch.int64)
        return score_pairs(stats_of(list(policy), list(reference), list(kl)), index, num_pairs=3)

    ratio, kl = [0.0] * 6, [0.0] * 6
    for sequence, policy, reference, divergence in tokens:
        ratio[sequence] += policy - reference
        kl[sequence] += divergence
    shuffled = list(tokens)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for found in (scores(tokens), scores(shuffled)):
        assert [*found.chosen_log_ratio, *found.rejected_log_ratio] == pytest.approx(ratio, abs=1e-12)
        assert [*found.chosen_sequence_kl, *found.rejected_sequence_kl] == pytest.approx(kl, abs=1e-12)


def test_on_a_gpu_the_order_of_additions_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is another one in every run; here the tokens are shuffled, and tensors say that they are on a GPU."""
    make = torch.Generator().manual_seed(0)
    values, index = torch.randn(2000, generator=make), torch.arange(2000) % 2

    def of_orders() -> int:
        orders = [torch.randperm(2000, generator=make) for _ in range(8)]
        return len({sum_by_sequence(values[o], index[o], 1)[0].item() for o in orders})

    assert of_orders() > 1, "sums in float32 show the order"
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    assert of_orders() == 1 and sum_by_sequence(values, index, 1)[0].dtype == torch.float32


def test_masked_is_removed() -> None:
    """A pair without its tokens scores what the other pairs score beside zeros, in value and gradient."""
    policy, reference = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    targets, index = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 2, 3])
    kept = index != 2  # the rejected response of pair 0
    full = score_pairs(token_stats(policy, reference, targets), index, 2)
    part = score_pairs(token_stats(policy[kept], reference[kept], targets[kept]), index[kept], 2)
    for name, value in vars(part).items():
        expected = getattr(full, name).clone()
        if name.startswith("rejected"):
            assert value[0] == 0.0
            expected[0] = 0.0
        assert torch.equal(value, expected)
    (gradient,) = torch.autograd.grad(sum(v.sum() for v in vars(part).values()), policy)
    assert (gradient[~kept] == 0).all() and (gradient[kept] != 0).any()


def test_nothing_to_sum() -> None:
    nothing = stats_of([], [], [])
    index = torch.empty(0, dtype=torch.int64)
    for pairs in (0, 3):
        for value in vars(score_pairs(nothing, index, pairs)).values():
            assert value.tolist() == [0.0] * pairs


def test_probability_zero() -> None:
    """Zero in both models says nothing about the ratio; zero in one of them makes it infinite, never NaN."""
    stats = stats_of([-INF, -INF, -1.0], [-INF, -1.0, -INF], [0.0, INF, 0.5])
    scores = score_pairs(stats, torch.tensor([0, 1, 2]), num_pairs=2)
    assert scores.chosen_log_ratio.tolist() == [0.0, -INF]
    assert scores.rejected_log_ratio.tolist() == [INF, 0.0]
    assert scores.chosen_sequence_kl.tolist() == [0.0, INF]

    policy = torch.tensor([[0.0, 1.0, -INF]], requires_grad=True)
    both = token_stats(policy, policy.detach() + 1, torch.tensor([2]))
    score_pairs(both, torch.tensor([0]), 1).chosen_log_ratio.sum().backward()
    assert torch.equal(policy.grad, torch.zeros(1, 3))


def test_errors_name_what_came_and_what_was_expected() -> None:
    stats = stats_of([-1.0, -2.0], [-1.0, -2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"shape of the statistics \(2,\), got \(3,\)"):
        score_pairs(stats, torch.tensor([0, 1, 1]), 1)
    with pytest.raises(ValueError, match=r"\[0, 2\) for 1 pairs, got values from 0 to 2"):
        score_pairs(stats, torch.tensor([0, 2]), 1)
    with pytest.raises(ValueError, match="got values from -1 to 0"):
        score_pairs(stats, torch.tensor([-1, 0]), 1)
    with pytest.raises(ValueError, match=r"\[0, 0\) for 0 pairs"):
        score_pairs(stats, torch.tensor([0, 0]), 0)
