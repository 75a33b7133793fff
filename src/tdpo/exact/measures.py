"""Exact numbers of a policy: sums over all responses, without sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from ..divergences import entropy, forward_kl, kl_of_logp, reverse_kl
from .tabular_problems import Problem

MEASURES = ("reward", "reward_variance", "forward_kl", "reverse_kl", "entropy", "mode_coverage", "effective_modes")


def measure(problem: Problem, node_logp: Tensor) -> dict[str, Tensor]:
    """The numbers of policies `node_logp` [..., nodes, symbols] by name, `[...]` each.

    `reward` is its expectation and `reward_variance` its variance; `forward_kl` is KL(reference‖policy) and
    `reverse_kl` KL(policy‖reference), nats a response; `entropy` is of the response, nats. `mode_coverage` is the
    expected share of the good responses among the settings' draws (16), `effective_modes` the exponential of the
    entropy of the policy among good responses (how many equally likely ones would have it).
    """
    logp = problem.tree.response_logp(node_logp)
    probability = logp.exp()
    mean = (probability * problem.rewards).sum(-1)
    among = torch.where(problem.modes, logp, -torch.inf)
    missed = (1 - probability[..., problem.modes]) ** problem.settings.draws
    return {
        "reward": mean,
        "reward_variance": (probability * problem.rewards**2).sum(-1) - mean**2,
        "forward_kl": kl_of_logp(problem.reference_logp.expand_as(logp), logp),
        "reverse_kl": kl_of_logp(logp, problem.reference_logp.expand_as(logp)),
        "entropy": entropy(logp),
        "mode_coverage": (1 - missed).mean(-1),
        "effective_modes": entropy(among).exp(),
    }


def node_kl(problem: Problem, node_logp: Tensor, direction: str) -> Tensor:
    """The KL of the next symbol in every node, [..., nodes] nats: "forward" or "reverse"."""
    reference = problem.reference.expand_as(node_logp)
    return (forward_kl if direction == "forward" else reverse_kl)(node_logp, reference)


def distance(first_logp: Tensor, second_logp: Tensor) -> Tensor:
    """Total variation between two policies' responses [..., K]: half the sum of absolute differences, in [0, 1]."""
    return 0.5 * (first_logp.exp() - second_logp.exp()).abs().sum(-1)
