"""The losses of pairs on tables, made of the losses that models are trained with.

Pairs are two responses of the reference, labelled as Bradley–Terry has it from the difference of their rewards. With
infinite data that is a weight for every ordered pair, with a sample a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..losses import dpo_loss, sft_loss, tdpo1_loss, tdpo2_loss
from ..scores import PairScores
from .measures import node_kl
from .problems import Problem

PREFERENCE_SCALE = 4.0  # a response that is worth 1 more is preferred with probability σ(4) = 0.98
ALPHA = 0.5  # of TDPO2, as the paper has it
HELD_BETA = 0.1  # of DPO beside which a KL term stands


@dataclass(frozen=True)
class Pairs:
    """Chosen and rejected responses, [..., P] each, and what every pair counts, summing to one over P."""

    chosen: Tensor
    rejected: Tensor
    weight: Tensor


def all_pairs(problem: Problem) -> Pairs:
    """Infinite data: every ordered pair of different responses, with its probability."""
    responses = problem.tree.responses
    index = torch.arange(responses)
    chosen, rejected = index.repeat_interleave(responses), index.repeat(responses)
    kept = chosen != rejected
    chosen, rejected = chosen[kept], rejected[kept]
    reference = problem.reference_logp.exp()
    preferred = torch.sigmoid(PREFERENCE_SCALE * (problem.rewards[chosen] - problem.rewards[rejected]))
    weight = reference[chosen] * reference[rejected] * preferred
    return Pairs(chosen, rejected, weight / weight.sum())


def sampled_pairs(problem: Problem, scored: int, studies: int, generator: torch.Generator) -> Pairs:
    """`studies` samples of scored // 2 pairs each; a pair of one response twice counts nothing."""
    reference = problem.reference_logp.exp()
    drawn = torch.multinomial(reference.expand(studies, -1), scored // 2 * 2, replacement=True, generator=generator)
    first, second = drawn.chunk(2, dim=-1)
    gap = PREFERENCE_SCALE * (problem.rewards[first] - problem.rewards[second])
    first_wins = torch.rand(first.shape, generator=generator, dtype=torch.float64) < torch.sigmoid(gap)
    weight = (first != second).double()
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1.0)
    pairs = Pairs(torch.where(first_wins, first, second), torch.where(first_wins, second, first), weight)
    return _counted(pairs, problem.tree.responses)


def _counted(pairs: Pairs, responses: int) -> Pairs:
    """The same sample as weights [studies, K²] of all ordered pairs, where that is shorter than the list."""
    if pairs.chosen.shape[-1] <= responses**2:
        return pairs
    index = torch.arange(responses)
    weight = torch.zeros(len(pairs.weight), responses**2, dtype=torch.float64)
    weight.scatter_add_(1, pairs.chosen * responses + pairs.rejected, pairs.weight)
    return Pairs(index.repeat_interleave(responses), index.repeat(responses), weight)


def chosen_distribution(problem: Problem) -> Tensor:
    """The probability [K] that a response is the chosen one of a pair, with infinite data."""
    pairs = all_pairs(problem)
    return torch.zeros(problem.tree.responses, dtype=torch.float64).index_add(0, pairs.chosen, pairs.weight)


PairLoss = Callable[[PairScores, float], Tensor]


def _f_dpo(derivative: Callable[[Tensor], Tensor]) -> PairLoss:
    """f-DPO: −log σ(β·f′(u_w) − β·f′(u_l)), u = π/π_ref of a response (Wang et al. 2023, arXiv 2309.16240, eq. 9).

    A transform of the sequence's ratio; not the KL over the vocabulary at each position.
    """

    def loss(scores: PairScores, beta: float) -> Tensor:
        gap = derivative(scores.chosen_log_ratio) - derivative(scores.rejected_log_ratio)
        return -logsigmoid(beta * gap)

    return loss


PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": lambda scores, beta: dpo_loss(scores, beta=beta).per_pair,
    "tdpo1": lambda scores, beta: tdpo1_loss(scores, beta=beta).per_pair,
    "tdpo2": lambda scores, beta: tdpo2_loss(scores, beta=beta, alpha=ALPHA).per_pair,
    "f_dpo_forward": _f_dpo(lambda log_ratio: -torch.exp(-log_ratio)),  # f(u) = −log u, f′(u) = −1/u
    # f(u) = u·log u − (u + 1)·log((u + 1)/2), f′(u) = log(2u/(1 + u))
    "f_dpo_js": _f_dpo(lambda log_ratio: torch.nn.functional.logsigmoid(log_ratio)),
}
STOPS_A_GRADIENT = {"tdpo2"}
HELD = {
    "dpo_forward": ("dpo", "forward"),
    "dpo_reverse": ("dpo", "reverse"),
    "sft_forward": ("sft", "forward"),
    "sft_reverse": ("sft", "reverse"),
}


def pair_objective(problem: Problem, pairs: Pairs, method: str, strength: float) -> Callable[[Tensor], Tensor]:
    """The loss of node logits [..., nodes, symbols]: [...] nats a pair.

    `strength` is β of the losses that hold themselves; of DPO (β = 0.1) and SFT beside a KL it is the coefficient of the
    KL, which is taken at the nodes of both responses of every pair.
    """
    if method in PAIR_LOSSES:
        return lambda logits: _pair_loss(problem, pairs, logits, PAIR_LOSSES[method], strength)
    inner, direction = HELD[method]
    loss: PairLoss = PAIR_LOSSES["dpo"] if inner == "dpo" else lambda scores, _: sft_loss(scores).per_pair

    def held(logits: Tensor) -> Tensor:
        kl = problem.tree.along_path(node_kl(problem, logits.log_softmax(-1), direction))
        both = 0.5 * (_of(kl, pairs.chosen) + _of(kl, pairs.rejected))
        anchor = (pairs.weight * both).sum(-1)
        return _pair_loss(problem, pairs, logits, loss, HELD_BETA) + strength * anchor

    return held


def _pair_loss(problem: Problem, pairs: Pairs, logits: Tensor, loss: PairLoss, strength: float) -> Tensor:
    node_logp = logits.log_softmax(-1)
    log_ratio = problem.tree.response_logp(node_logp) - problem.reference_logp
    kl = problem.tree.along_path(node_kl(problem, node_logp, "forward"))
    scores = PairScores(
        _of(log_ratio, pairs.chosen), _of(log_ratio, pairs.rejected), _of(kl, pairs.chosen), _of(kl, pairs.rejected)
    )
    return (pairs.weight * loss(scores, strength)).sum(-1)


def _of(values: Tensor, responses: Tensor) -> Tensor:
    """`values` [..., K] of `responses`: the same [P] for all, or a list [..., P] for each."""
    return values[..., responses] if responses.dim() == 1 else values.gather(-1, responses)
