"""Learning from a finite number of scored responses: many studies at once, each with its own data.

The studies are the tables of one tensor [studies, nodes, symbols], so that a hundred cost little more than
one. All methods learn with Adam. Pairs are sampled from the reference before learning, and every update uses them all.
PPO and RLOO sample from the current policy, and use each response once (RLOO) or in four passes (PPO).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy_gradient import clipped_policy_loss, gae
from .measures import node_kl
from .objectives import pair_objective, sampled_pairs
from .tabular_problems import Problem


@dataclass(frozen=True)
class Constraint:
    """The KL of a method that learns from rewards: "forward" or "reverse", in the "reward" or in the "loss"."""

    direction: str
    place: str


def learn_from_pairs(
    problem: Problem, method: str, strength: float, *, scored: int, rates: Tensor, seed: int
) -> Tensor:
    """The learned node_logp [studies, nodes, symbols], from `scored` responses of the reference in scored // 2 pairs.

    `method` and `strength` are those of `objectives.pair_objective`, `rates` [studies] are Adam's learning rates.
    """
    pairs = sampled_pairs(problem, scored, len(rates), torch.Generator().manual_seed(seed))
    objective = pair_objective(problem, pairs, method, strength)
    logits = _start(problem, len(rates))
    adam = _Adam(logits, rates[:, None, None])
    for _ in range(problem.settings.pair_updates):
        _descend(objective(logits), adam)
    return logits.detach().log_softmax(-1)


def learn_from_rewards(
    problem: Problem,
    algorithm: str,
    constraint: Constraint,
    coefficient: float,
    *,
    scored: int,
    rates: Tensor,
    seed: int,
) -> Tensor:
    """The learned node_logp [studies, nodes, symbols], from `scored` responses of the policy.

    `algorithm` is "ppo" or "rloo", `rates` [studies] are Adam's learning rates.
    """
    learner = _Learner(problem, constraint, coefficient, rates)
    update = {"ppo": _update_ppo, "rloo": _update_rloo}[algorithm]
    generator = torch.Generator().manual_seed(seed)
    count = dict(problem.settings.rollouts)[scored]
    for _ in range(scored // count):
        logp = problem.tree.response_logp(learner.logits.detach().log_softmax(-1))
        update(learner, torch.multinomial(logp.exp(), count, replacement=True, generator=generator))
    return learner.logits.detach().log_softmax(-1)


def _start(problem: Problem, studies: int) -> Tensor:
    return problem.reference.expand(studies, -1, -1).clone().requires_grad_()


class _Adam:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) for one tensor, in which each study may have its own rate."""

    def __init__(self, parameter: Tensor, rate: Tensor | float) -> None:
        self.parameter, self.rate, self.steps = parameter, rate, 0
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self, gradient: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient * gradient, 0.001)
        mean = self.mean / (1 - 0.9**self.steps)
        root = (self.square / (1 - 0.999**self.steps)).sqrt_()
        with torch.no_grad():
            self.parameter -= self.rate * mean / root.add_(1e-8)


def _descend(loss: Tensor, *optimizers: _Adam) -> None:
    """One update of all studies; `loss` [studies]."""
    gradients = torch.autograd.grad(loss.sum(), [adam.parameter for adam in optimizers])
    for adam, gradient in zip(optimizers, gradients, strict=True):
        adam.step(gradient)


class _Learner:
    """What PPO and RLOO train: logits, and values of the nodes, which RLOO does not use."""

    def __init__(self, problem: Problem, constraint: Constraint, coefficient: float, rates: Tensor) -> None:
        self.problem, self.constraint, self.coefficient = problem, constraint, coefficient
        self.logits = _start(problem, len(rates))
        self.values = torch.zeros(len(rates), problem.tree.nodes, dtype=torch.float64, requires_grad=True)
        self.adam = _Adam(self.logits, rates[:, None, None])
        self.critic = _Adam(self.values, problem.settings.critic_rate)

    def kl_loss(self, node_logp: Tensor, responses: Tensor) -> Tensor:
        """The coefficient times the exact KL at the nodes of the responses, [studies]; 0 if the KL is in the reward."""
        if self.constraint.place == "reward":
            return node_logp.new_zeros(len(node_logp))
        per_response = self.problem.tree.along_path(node_kl(self.problem, node_logp, self.constraint.direction))
        return self.coefficient * per_response.gather(-1, responses).mean(-1)


def _update_rloo(learner: _Learner, responses: Tensor) -> None:
    """One update on sampled `responses` [studies, B]: REINFORCE with the mean of the other responses as baseline.

    Ahmadian et al. 2024, arXiv 2402.14740.
    """
    problem, node_logp = learner.problem, learner.logits.log_softmax(-1)
    logp = problem.tree.response_logp(node_logp).gather(-1, responses)
    rewards = problem.rewards[responses]
    if learner.constraint.place == "reward":
        rewards = rewards - learner.coefficient * (logp.detach() - problem.reference_logp[responses])
    count = responses.shape[-1]
    advantage = (rewards - rewards.mean(-1, keepdim=True)) * count / (count - 1)
    _descend(-(advantage * logp).mean(-1) + learner.kl_loss(node_logp, responses), learner.adam)


def _update_ppo(learner: _Learner, responses: Tensor) -> None:
    """Some passes over sampled `responses` [studies, B]: the clipped loss, and a critic that is a table of values."""
    problem, settings = learner.problem, learner.problem.settings
    nodes, symbols = problem.tree.path_nodes[responses], problem.tree.path_symbols[responses]  # [studies, B, depth]
    entries = (nodes * problem.tree.symbols + symbols).flatten(1)

    def at_responses(table: Tensor) -> Tensor:
        return table.flatten(1).gather(1, entries).view(nodes.shape)

    def values() -> Tensor:
        return learner.values.gather(1, nodes.flatten(1)).view(nodes.shape)

    old = at_responses(learner.logits.detach().log_softmax(-1))
    rewards = torch.zeros_like(old)
    rewards[..., -1] = problem.rewards[responses]
    if learner.constraint.place == "reward":
        rewards -= learner.coefficient * (old - at_responses(problem.reference.expand_as(learner.logits)))
    advantages, returns = _advantages(rewards, values().detach(), settings.gae_lambda)
    for _ in range(settings.passes):
        node_logp = learner.logits.log_softmax(-1)
        policy = clipped_policy_loss(at_responses(node_logp), old, advantages, settings.clip).per_token.sum(-1).mean(-1)
        critic = 0.5 * (values() - returns).square().mean((1, 2))
        _descend(policy + learner.kl_loss(node_logp, responses) + critic, learner.adam, learner.critic)


def _advantages(rewards: Tensor, values: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages, centred in each study, and returns, [studies, B, depth] each."""
    flat = rewards.flatten(0, 1)
    mask = torch.ones_like(flat, dtype=torch.bool)
    advantages, returns = gae(flat, values.flatten(0, 1), mask, gamma=1.0, lam=lam)
    advantages = advantages.view_as(rewards)
    return advantages - advantages.mean((1, 2), keepdim=True), returns.view_as(rewards)
