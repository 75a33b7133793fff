"""The losses of pairs on tables, computed by the losses that train models.

A pair is two responses of the reference, labelled at random by Bradley–Terry from the difference of their rewards.
Data are a weight for every ordered pair, [..., K, K], chosen first: its probability with infinite data, else its share
of the sample.

The losses of `tdpo.losses` get scores whose fields are [..., K, 1] and [..., 1, K], and broadcast them to all pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import dpo_loss, f_dpo_loss, sft_loss, tdpo1_loss, tdpo2_loss
from ..scores import PairScores
from .measures import node_kl
from .tabular_problems import Problem

PairLoss = Callable[[PairScores, float, Problem], Tensor]  # scores, β, problem → nats per pair


def all_pairs(problem: Problem) -> Tensor:
    """Infinite data: the probability [K, K] of every ordered pair of different responses."""
    reference = problem.reference_logp.exp()
    gap = problem.rewards[:, None] - problem.rewards
    weight = reference[:, None] * reference * torch.sigmoid(problem.settings.preference_scale * gap)
    weight = weight.fill_diagonal_(0.0)
    return weight / weight.sum()


def sampled_pairs(problem: Problem, scored: int, studies: int, generator: torch.Generator) -> Tensor:
    """`studies` samples of scored // 2 pairs each, [studies, K, K]; a pair of equal responses does not count."""
    size = problem.tree.responses
    reference = problem.reference_logp.exp()
    samples = torch.multinomial(reference.expand(studies, -1), scored // 2 * 2, replacement=True, generator=generator)
    first, second = samples.chunk(2, dim=-1)
    gap = problem.settings.preference_scale * (problem.rewards[first] - problem.rewards[second])
    first_wins = torch.rand(first.shape, generator=generator, dtype=torch.float64) < torch.sigmoid(gap)
    chosen, rejected = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
    counts = torch.zeros(studies, size * size, dtype=torch.float64)
    counts.scatter_add_(1, chosen * size + rejected, (first != second).double())
    return (counts / counts.sum(-1, keepdim=True).clamp_min(1.0)).unflatten(-1, (size, size))


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": lambda scores, beta, _: dpo_loss(scores, beta=beta).per_pair,
    "tdpo1": lambda scores, beta, _: tdpo1_loss(scores, beta=beta).per_pair,
    "tdpo2": lambda scores, beta, problem: tdpo2_loss(scores, beta=beta, alpha=problem.settings.alpha).per_pair,
    "f_dpo_forward": lambda scores, beta, _: f_dpo_loss(scores, beta=beta, divergence="forward").per_pair,
    "f_dpo_js": lambda scores, beta, _: f_dpo_loss(scores, beta=beta, divergence="js").per_pair,
}
STOPS_A_GRADIENT = {"tdpo2"}
# The loss of pairs, and the direction of the KL beside it.
BESIDE_KL = {
    "dpo_forward": ("dpo", "forward"),
    "dpo_reverse": ("dpo", "reverse"),
    "sft_forward": ("sft", "forward"),
    "sft_reverse": ("sft", "reverse"),
}


def pair_objective(problem: Problem, weight: Tensor, method: str, strength: float) -> Callable[[Tensor], Tensor]:
    """The loss as a function of node logits [..., nodes, symbols], on pairs `weight` [..., K, K]: [...] nats per pair.

    `strength` is the β of a loss of pairs alone. For DPO (β = 0.1) and SFT beside a KL it is the coefficient of
    the KL, which is taken at the nodes of both responses of every pair.
    """
    if method in PAIR_LOSSES:
        return lambda logits: _pair_loss(problem, weight, logits, PAIR_LOSSES[method], strength)
    inner, direction = BESIDE_KL[method]
    visits = 0.5 * (weight.sum(-1) + weight.sum(-2))

    def with_kl(logits: Tensor) -> Tensor:
        kl = problem.tree.along_path(node_kl(problem, logits.log_softmax(-1), direction))
        anchor = strength * (visits * kl).sum(-1)
        if inner == "sft":
            return anchor + _imitation(problem, weight, logits)
        return anchor + _pair_loss(problem, weight, logits, PAIR_LOSSES["dpo"], problem.settings.held_beta)

    return with_kl


def _pair_loss(problem: Problem, weight: Tensor, logits: Tensor, loss: PairLoss, beta: float) -> Tensor:
    node_logp = logits.log_softmax(-1)
    log_ratio = problem.tree.response_logp(node_logp) - problem.reference_logp
    kl = problem.tree.along_path(node_kl(problem, node_logp, "forward"))
    scores = PairScores(log_ratio[..., :, None], log_ratio[..., None, :], kl[..., :, None], kl[..., None, :])
    return (weight * loss(scores, beta, problem)).sum((-2, -1))


def _imitation(problem: Problem, weight: Tensor, logits: Tensor) -> Tensor:
    """SFT on the chosen responses: the loss of a pair does not depend on the rejected one."""
    log_ratio = problem.tree.response_logp(logits.log_softmax(-1)) - problem.reference_logp
    none = torch.zeros_like(log_ratio)
    return (weight.sum(-1) * sft_loss(PairScores(log_ratio, none, none, none)).per_pair).sum(-1)
