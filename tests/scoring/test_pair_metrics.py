"""When a pair counts as right, as wrong or as a tie."""

from __future__ import annotations

import torch

from tdpo.losses import sft_loss
from tdpo.scores import score_pairs
from tdpo.scoring.configured_loss import beta_of, configured_loss
from tdpo.scoring.pair_metrics import PAIR_METRICS, TIE, pair_metrics, ranked_correctly
from tdpo.token_statistics import TokenStats

EPS = torch.finfo(torch.float32).eps


def test_a_margin_within_the_rounding_of_its_log_probabilities_is_a_tie() -> None:
    nats = torch.tensor(100.0)  # of both responses together
    limit = 0.1 * TIE * EPS * 100  # 1e-5
    margins = torch.tensor([0.0, 1e-16, -1e-16, 0.9 * limit, -0.9 * limit, 1.1 * limit, -1.1 * limit, 2.0, -2.0])
    found = ranked_correctly(margins, nats.expand(9), beta=0.1)
    assert found.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 1, 0, 1, 0]
    assert found.dtype == torch.float64
    smaller = ranked_correctly(margins[3:4], nats.expand(1), beta=0.01)
    assert smaller.item() == 1.0, "the same margin at a tenth of the β is ten times as many nats"


def test_double_precision_resolves_more() -> None:
    margin, nats = torch.tensor([1e-7], dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)
    assert ranked_correctly(margin, nats, beta=0.1).item() == 1.0
    assert ranked_correctly(margin, nats.float(), beta=0.1).item() == 0.5


def test_what_a_policy_forbids_is_no_tie() -> None:
    margins, nats = torch.tensor([float("inf"), -float("inf")]), torch.tensor([50.0, 50.0])
    assert ranked_correctly(margins, nats, beta=1.0).tolist() == [1.0, 0.0]


def test_the_beta_of_every_loss() -> None:
    for name in ("dpo", "tdpo1", "tdpo2", "ipo"):
        assert beta_of(configured_loss(name, 0.25, 0.5, 0.0).of_pairs) == 0.25
    assert beta_of(sft_loss) == 1.0 and configured_loss("sft", None, None, 0.0).of_pairs is sft_loss
    assert beta_of(configured_loss("simpo", 2.0, None, 0.0, gamma=1.0).of_pairs) == 2.0


def test_a_margin_of_means_has_the_rounding_of_means() -> None:
    """Two responses of a thousand tokens, −1 nat each but for a last one: a margin of 2e-4 per token. The rounding of
    the means is 4e-6, of sums 2000 times 8ε, which would call it a tie."""
    logp = torch.full((2000,), -1.0)
    logp[-1] -= 0.1
    stats = TokenStats(logp, *(torch.zeros(2000) for _ in range(4)))
    index, simpo = torch.arange(2000) // 1000, configured_loss("simpo", 2.0, None, 0.0, gamma=1.0).of_pairs
    scores = score_pairs(stats, index, 1)
    loss = simpo(scores)
    row = dict(zip(PAIR_METRICS, pair_metrics(stats, scores, loss, index, 1, simpo)[0].tolist(), strict=True))
    assert 1e-4 < row["margin"] < 2 * TIE * EPS * 2000 and row["accuracy"] == 1.0
