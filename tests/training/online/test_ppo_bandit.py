"""PPO against policies that are known to be best: every accepted constraint, three strengths, two seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tdpo.training.online.objective as online
from helpers.ppo_cases import (
    ACCEPTED,
    PROMPT,
    bandit_model,
    bandit_reward,
    distribution,
    make_ppo,
    optimum,
    reward_of_tokens,
    total_divergence,
    word_tokenizer,
)
from tdpo.divergences import sampled_kl
from tdpo.policy_gradient import KLConstraint
from tdpo.token_statistics import TokenStats

NEAR = 1e-2  # nats of total divergence, KL both ways


def trained(folder: Path, constraint: dict[str, Any], seed: int, **more: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the reference and of the trained policy."""
    tokenizer, model = word_tokenizer(), bandit_model()
    reference = distribution(model, tokenizer)
    # An exact KL does not know which tokens were drawn, so it leaves the whole noise of the rewards, where a sampled
    # one cancels most of it near the optimum: twice the completions.
    completions = 512 if constraint["form"] == "exact" else 256
    # The stronger the constraint, the shorter the way and the weaker the noise. These are within 0.0025 nats after 25.
    few = constraint["coefficient"] == 1.0 or (
        constraint["form"] == "sampled" and (constraint["coefficient"] > 0.1 or constraint["direction"] == "forward")
    )
    trainer = make_ppo(
        model, folder, tokenizer, bandit_reward, [PROMPT], kl={**constraint, "controller": "fixed"}, seed=seed,
        iterations=25 if few else 50, completions=completions, samples_per_prompt=completions,
        rollout_batch_size=completions, max_new_tokens=1, ppo_epochs=2, per_device_train_batch_size=completions,
        learning_rate=2e-2, lr_scheduler_type="linear", show_every=None, **more,
    )  # fmt: skip
    trainer.train()
    return reference, distribution(model, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "seed"), [(0.1, 0), (0.3, 1), (1.0, 0)])
@pytest.mark.parametrize(("direction", "form", "place", "_"), ACCEPTED)
def test_every_accepted_constraint_ends_at_its_optimum(
    direction: str, form: str, place: str, _: str, beta: float, seed: int, tmp_path: Path
) -> None:
    constraint = {"direction": direction, "form": form, "place": place, "coefficient": beta}
    reference, policy = trained(tmp_path, constraint, seed)
    best, other = (optimum(reference, d, beta) for d in (direction, {"reverse": "forward"}.get(direction, "reverse")))
    assert total_divergence(policy, best) < NEAR
    assert total_divergence(reference, best) > 10 * NEAR  # it had somewhere to go
    # The two directions have different optima, so that landing near one is not landing near the other.
    assert total_divergence(policy, other) > total_divergence(policy, best)


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "direction"), [("rloo", "reverse"), ("group", "forward")])
def test_without_a_critic_an_exact_kl_ends_at_its_optimum(advantage: str, direction: str, tmp_path: Path) -> None:
    constraint = {"direction": direction, "form": "exact", "place": "loss", "coefficient": 0.3}
    more = {"scale_by_group_std": False} if advantage == "group" else {}
    reference, policy = trained(tmp_path, constraint, 0, advantage=advantage, **more)
    other = optimum(reference, "forward" if direction == "reverse" else "reverse", 0.3)
    assert total_divergence(policy, optimum(reference, direction, 0.3)) < NEAR < total_divergence(policy, other) / 2


@pytest.mark.slow
def test_dividing_by_the_groups_deviation_lets_go_of_the_reference(tmp_path: Path) -> None:
    """In units of their deviation s, rewards make a coefficient β act like β·s, and s falls as the policy improves."""
    constraint = {"direction": "reverse", "form": "exact", "place": "loss", "coefficient": 1.0}
    reference, policy = trained(tmp_path, constraint, 0, advantage="group")
    best = optimum(reference, "reverse", 1.0)
    assert total_divergence(policy, best) > 100 * NEAR
    assert total_divergence(policy, reference) > 10 * total_divergence(best, reference)


def test_the_optima_maximise_what_they_claim_to() -> None:
    reference = distribution(bandit_model(), word_tokenizer())
    for direction in ("reverse", "forward"):
        for beta in (0.1, 0.3, 1.0):
            best = optimum(reference, direction, beta)
            assert float(best.exp().sum()) == pytest.approx(1.0, abs=1e-9)
            peak = objective(best, reference, direction, beta)
            for seed in range(20):
                noise = 0.05 * torch.randn(len(best), generator=torch.Generator().manual_seed(seed)).double()
                assert objective((best + noise).log_softmax(-1), reference, direction, beta) < peak


def objective(policy: Tensor, reference: Tensor, direction: str, beta: float) -> float:
    gap = policy - reference
    kl = (policy.exp() * gap).sum() if direction == "reverse" else -(reference.exp() * gap).sum()
    return float((policy.exp() * reward_of_tokens()).sum() - beta * kl)


@pytest.mark.slow
def test_k3_in_the_loss_is_another_objective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What other libraries do for the reverse KL lands at the forward KL's optimum instead."""

    def wrong(constraint: KLConstraint, stats: TokenStats, old_logp: Tensor) -> Tensor:
        return (stats.policy_logp - old_logp).exp().detach() * sampled_kl(stats.policy_logp, stats.reference_logp, "k3")

    monkeypatch.setattr(online, "kl_loss", wrong)
    beta = 0.1
    constraint = {"direction": "reverse", "form": "sampled", "place": "loss", "coefficient": beta}
    reference, policy = trained(tmp_path, constraint, seed=0)
    assert total_divergence(policy, optimum(reference, "reverse", beta)) > 20 * NEAR
    assert total_divergence(policy, optimum(reference, "forward", beta)) < NEAR
