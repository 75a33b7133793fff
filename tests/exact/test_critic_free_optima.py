"""Advantages without a critic beside each KL, with infinite data: every pair of responses, weighted by its probability.

The optima are those that `tdpo.exact` computes in closed form.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tdpo.exact import optima
from tdpo.exact.measures import node_kl
from tdpo.exact.tabular_problems import Problem, make_problem
from tdpo.exact.trees import Tree
from tdpo.policy_gradient import group_relative, leave_one_out

TREES = [Tree(7), Tree(4, 3)]
COEFFICIENT = 0.4
NEAR = 1e-3  # nats, KL both ways


def learned(problem: Problem, advantage: str, place: str, direction: str, *, with_kl: bool = True) -> Tensor:
    """Where Adam ends on the expected loss of two responses to the prompt, node_logp [nodes, symbols]."""
    tree = problem.tree
    pairs = torch.cartesian_prod(torch.arange(tree.responses), torch.arange(tree.responses))
    logits = problem.reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.985)
    for _ in range(500):
        node_logp = logits.log_softmax(-1)
        logp = tree.response_logp(node_logp)
        weight = logp.detach()[pairs].sum(1).exp()
        penalty = logp.detach() - problem.reference_logp if place == "reward" else torch.zeros_like(logp)
        rewards = problem.rewards - COEFFICIENT * penalty
        loss = -(weight * (compared(rewards[pairs], advantage) * logp[pairs]).mean(1)).sum()
        if place == "loss" and with_kl:
            loss = loss + COEFFICIENT * logp.detach().exp() @ tree.along_path(node_kl(problem, node_logp, direction))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logits.detach().log_softmax(-1)


def compared(rewards: Tensor, advantage: str) -> Tensor:
    # Of two responses the group's mean contains half of the response itself: the same gradient, half as long.
    return leave_one_out(rewards) if advantage == "rloo" else 2 * group_relative(rewards, divide_by_std=False)


def both_ways(problem: Problem, first: Tensor, second: Tensor) -> float:
    """KL(a‖b) + KL(b‖a) of the responses, nats."""
    a, b = (problem.tree.response_logp(table) for table in (first, second))
    return float(((a.exp() - b.exp()) * (a - b)).sum())


@pytest.mark.parametrize(
    ("advantage", "tree"), [("rloo", TREES[0]), ("rloo", TREES[1]), ("group", TREES[1])], ids=["rloo", "rloo", "group"]
)
def test_each_kl_ends_at_its_own_optimum(advantage: str, tree: Tree) -> None:
    problem = make_problem(tree, "peaked", "rare")
    best = {
        ("reward", "reverse"): optima.kl_in_reward(problem, COEFFICIENT),
        ("loss", "reverse"): optima.kl_in_loss(problem, "reverse", COEFFICIENT),
        ("loss", "forward"): optima.kl_in_loss(problem, "forward", COEFFICIENT),
    }
    for kind, optimum in best.items():
        policy = learned(problem, advantage, *kind)
        assert both_ways(problem, policy, optimum) < NEAR, kind
        assert both_ways(problem, problem.reference, optimum) > 50 * NEAR, "it had somewhere to go"
        for other_kind, other in best.items():
            if other_kind[1] != kind[1] or (tree.depth > 1 and other_kind != kind):
                assert both_ways(problem, policy, other) > 5 * NEAR, (kind, other_kind)


def test_a_kl_without_its_gradient_is_missed() -> None:
    problem = make_problem(TREES[0], "peaked", "rare")
    policy = learned(problem, "rloo", "loss", "reverse", with_kl=False)
    assert both_ways(problem, policy, optima.kl_in_loss(problem, "reverse", COEFFICIENT)) > 100 * NEAR
