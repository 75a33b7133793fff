"""What a method makes of a finite number of scored responses: many studies at once, each with its own data.

Every study is a table of its own in one tensor [studies, nodes, symbols], so that a hundred cost little more than one. All
methods learn with Adam. Pairs are drawn from the reference before learning, and every update sees them all; PPO and RLOO
draw from the policy as it is, and see each response once (RLOO) or in four passes (PPO).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy_gradient import clipped_policy_loss, gae
from .measures import node_kl
from .objectives import pair_objective, sampled_pairs
from .problems import Problem

PAIR_UPDATES = 100
PASSES = 4  # of PPO over the responses of an iteration
CLIP = 0.2
LAMBDA = 0.95
CRITIC_RATE = 0.1
ROLLOUTS = {50: 10, 500: 20, 5000: 100}  # responses of an iteration, by how many there are in all


@dataclass(frozen=True)
class Constraint:
    """The KL of a method that learns from rewards: "forward" or "reverse", taken off the "reward" or in the "loss"."""

    direction: str
    place: str


def learn_from_pairs(
    problem: Problem, method: str, strength: float, *, scored: int, studies: int, rate: float, seed: int
) -> Tensor:
    """node_logp [studies, nodes, symbols] after `scored` responses of the reference in scored // 2 pairs.

    `method` and `strength` are those of `objectives.pair_objective`.
    """
    pairs = sampled_pairs(problem, scored, studies, torch.Generator().manual_seed(seed))
    return _descend(problem, pair_objective(problem, pairs, method, strength), studies, rate)


def _descend(problem: Problem, objective: Callable[[Tensor], Tensor], studies: int, rate: float) -> Tensor:
    logits = _start(problem, studies)
    adam = torch.optim.Adam([logits], lr=rate)
    for _ in range(PAIR_UPDATES):
        adam.zero_grad()
        objective(logits).sum().backward()
        adam.step()
    return logits.detach().log_softmax(-1)


def learn_from_rewards(
    problem: Problem,
    algorithm: str,
    constraint: Constraint,
    coefficient: float,
    *,
    scored: int,
    studies: int,
    rate: float,
    seed: int,
) -> Tensor:
    """node_logp [studies, nodes, symbols] after `scored` responses of the policy itself; `algorithm` "ppo" or "rloo"."""
    learner = {"ppo": _PPO, "rloo": _RLOO}[algorithm](problem, constraint, coefficient, studies, rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(scored // ROLLOUTS[scored]):
        logp = problem.tree.response_logp(learner.logits.detach().log_softmax(-1))
        learner.update(torch.multinomial(logp.exp(), ROLLOUTS[scored], replacement=True, generator=generator))
    return learner.logits.detach().log_softmax(-1)


def _start(problem: Problem, studies: int) -> Tensor:
    return problem.reference.expand(studies, -1, -1).clone().requires_grad_()


class _RLOO:
    """REINFORCE with the mean of the other responses as baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""

    def __init__(
        self, problem: Problem, constraint: Constraint, coefficient: float, studies: int, rate: float
    ) -> None:
        self.problem, self.constraint, self.coefficient = problem, constraint, coefficient
        self.logits = _start(problem, studies)
        self.adam = torch.optim.Adam([self.logits], lr=rate)

    def update(self, responses: Tensor) -> None:
        """One update on drawn `responses` [studies, B]."""
        node_logp = self.logits.log_softmax(-1)
        logp = self.problem.tree.response_logp(node_logp).gather(-1, responses)
        rewards = self.problem.rewards[responses]
        if self.constraint.place == "reward":
            rewards = rewards - self.coefficient * (logp - self.problem.reference_logp[responses]).detach()
        count = responses.shape[-1]
        advantage = (rewards - rewards.mean(-1, keepdim=True)) * count / (count - 1)
        loss = -(advantage * logp).mean(-1) + self.kl(node_logp, responses)
        self.step(loss.sum())

    def kl(self, node_logp: Tensor, responses: Tensor) -> Tensor:
        """The coefficient times the exact KL at the nodes of the responses, [studies]; 0 where it is in the reward."""
        if self.constraint.place == "reward":
            return node_logp.new_zeros(len(node_logp))
        per_response = self.problem.tree.along_path(node_kl(self.problem, node_logp, self.constraint.direction))
        return self.coefficient * per_response.gather(-1, responses).mean(-1)

    def step(self, loss: Tensor) -> None:
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


class _PPO(_RLOO):
    """Clipped PPO with a critic that is a table of the nodes' values."""

    def __init__(
        self, problem: Problem, constraint: Constraint, coefficient: float, studies: int, rate: float
    ) -> None:
        super().__init__(problem, constraint, coefficient, studies, rate)
        self.values = torch.zeros(studies, problem.tree.nodes, dtype=torch.float64, requires_grad=True)
        self.adam.add_param_group({"params": [self.values], "lr": CRITIC_RATE})

    def update(self, responses: Tensor) -> None:
        """Four updates on drawn `responses` [studies, B]."""
        tree = self.problem.tree
        nodes, symbols = tree.path_nodes[responses], tree.path_symbols[responses]  # [studies, B, depth]
        places = (nodes * tree.symbols + symbols).flatten(1)

        def drawn(table: Tensor) -> Tensor:
            return table.flatten(1).gather(1, places).view(nodes.shape)

        old = drawn(self.logits.detach().log_softmax(-1))
        rewards = torch.zeros_like(old)
        rewards[..., -1] = self.problem.rewards[responses]
        if self.constraint.place == "reward":
            rewards -= self.coefficient * (old - drawn(self.problem.reference.expand_as(self.logits)))
        values = self.values.detach().gather(1, nodes.flatten(1)).view(nodes.shape)
        flat = (-1, tree.depth)
        mask = torch.ones_like(rewards.view(flat), dtype=torch.bool)
        advantages, returns = gae(rewards.view(flat), values.reshape(flat), mask, gamma=1.0, lam=LAMBDA)
        advantages, returns = advantages.view_as(old), returns.view_as(old)
        advantages = advantages - advantages.mean((1, 2), keepdim=True)
        for _ in range(PASSES):
            node_logp = self.logits.log_softmax(-1)
            policy = clipped_policy_loss(drawn(node_logp), old, advantages, CLIP).per_token.sum(-1).mean(-1)
            value = 0.5 * (self.values.gather(1, nodes.flatten(1)).view_as(returns) - returns).square().mean((1, 2))
            self.step((policy + self.kl(node_logp, responses) + value).sum())
