"""A KL beside a loss, and distillation, end where they should: on optima that are computed independently.

Policies are tables of logits over trees of responses, float64, with infinite data: every ordered pair of responses with
its probability. They pass through the operators that train models, with the identity for a head: hidden state n is the
row of logits of node n. What is computed independently knows nothing of these operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from tdpo import Head, PairScores, frozen_head_token_stats, linear_token_stats, score_pairs, summarize_reference
from tdpo.exact.tabular_problems import Problem, make_problem
from tdpo.exact.trees import Tree
from tdpo.kl_choices import KLTerm
from tdpo.losses import beside_kl, pair_kl
from tdpo.scoring.configured_loss import configured_loss
from tdpo.token_statistics import JensenShannon

NATS = 1e-3  # how near a policy must come, in KL(optimum‖policy) of whole responses
TREES = [Tree(6), Tree(4, 3)]
COEFFICIENT, BETA = 0.3, 0.5


@cache
def problem_of(tree: Tree) -> Problem:
    """With a reference that is sharp enough for the two directions to differ."""
    problem = make_problem(tree, "peaked", "rare")
    return replace(problem, reference=(2 * problem.reference).log_softmax(-1))


def descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a loss of parameters, by a quasi-Newton method that sees the loss's own gradient alone."""

    def slope(flat: Any) -> tuple[float, Any]:
        parameters = torch.tensor(flat, dtype=torch.float64).reshape(start.shape).requires_grad_()
        value = loss(parameters)
        return float(value.detach()), torch.autograd.grad(value, parameters)[0].flatten().numpy()

    options = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 400}
    found = minimize(slope, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).reshape(start.shape)


def pair_weights(tree: Tree) -> Tensor:
    """Infinite data: the probability [K, K] of every ordered pair of responses that were drawn uniformly.

    From the reference, as `all_pairs` draws them, the chosen ones would be so near it that no direction matters.
    """
    gap = problem_of(tree).rewards[:, None] - problem_of(tree).rewards
    weight = torch.sigmoid(8.0 * gap).fill_diagonal_(0.0)
    return weight / weight.sum()


class Pairs:
    """Every ordered pair of responses of a tree. Each response passes through the operators once on either side."""

    def __init__(self, tree: Tree) -> None:
        self.problem, self.count = problem_of(tree), tree.responses
        weight = pair_weights(tree)
        self.chosen, self.rejected = (weight > 0).nonzero().T
        self.weight = weight[self.chosen, self.rejected]
        self.nodes, self.targets = tree.path_nodes.repeat(2, 1).flatten(), tree.path_symbols.repeat(2, 1).flatten()
        self.index = torch.arange(2 * self.count).repeat_interleave(tree.depth)
        self.head = Head(torch.eye(tree.symbols, dtype=torch.float64))
        self.summary = summarize_reference(self.problem.reference[self.nodes], self.head, self.targets)

    def loss(self, logits: Tensor, name: str, direction: Any, path: str, gradient: bool = True) -> Tensor:
        """The mean loss over pairs, from the functions that the trainer calls; the KL a constant without `gradient`."""
        hidden = logits[self.nodes]
        if path == "frozen":
            stats = frozen_head_token_stats(hidden, self.head, self.summary, self.targets, extras=["reverse_kl"])
        else:
            reference = self.problem.reference[self.nodes]
            stats = linear_token_stats(hidden, self.head, reference, self.head, self.targets, extras=["reverse_kl"])
        single = score_pairs(stats, self.index, self.count)
        scores = PairScores(
            single.chosen_log_ratio[self.chosen],
            single.rejected_log_ratio[self.rejected],
            single.chosen_sequence_kl[self.chosen],
            single.rejected_sequence_kl[self.rejected],
        )
        sides = ((KLTerm(direction, "chosen"), self.chosen), (KLTerm(direction, "rejected"), self.rejected))
        kl = sum(0.5 * pair_kl(stats, self.index, self.count, term)[rows] for term, rows in sides)
        loss = configured_loss(name, BETA, None, 0.0).of_pairs(scores)
        beside = beside_kl(loss, kl if gradient else kl.detach(), COEFFICIENT)  # type: ignore[union-attr, arg-type]
        return (self.weight * beside.per_pair).sum()


@cache
def optimum(tree: Tree, name: str, direction: str) -> Tensor:
    """log π [nodes, symbols] of the minimum of loss + λ·KL: closed, or from sums over responses written out here."""
    problem, weight = problem_of(tree), pair_weights(tree)
    reference, visits = problem.reference, 0.5 * (weight.sum(0) + weight.sum(1))
    if (name, direction) == ("sft", "forward"):
        # In each node a mixture of what the chosen responses take there and of the reference.
        passes = tree.taken(visits).sum(-1, keepdim=True)
        mass = tree.taken(weight.sum(1)) + COEFFICIENT * passes * reference.exp()
        return (mass / mass.sum(-1, keepdim=True)).log()

    def loss(logits: Tensor) -> Tensor:
        logp = logits - logits.logsumexp(-1, keepdim=True)
        p, q = logp.exp(), reference.exp()
        per_node = (q * (reference - logp)).sum(-1) if direction == "forward" else (p * (logp - reference)).sum(-1)
        anchor = (visits * per_node[tree.path_nodes].sum(-1)).sum()
        ratio = (logp - reference)[tree.path_nodes, tree.path_symbols].sum(-1)
        if name == "sft":
            return anchor * COEFFICIENT - (weight.sum(1) * ratio).sum()
        margin = BETA * (ratio[:, None] - ratio)
        return anchor * COEFFICIENT + (weight * torch.log1p(torch.exp(-margin))).sum()

    return descend(loss, reference).log_softmax(-1)


def nats_apart(tree: Tree, first: Tensor, second: Tensor) -> float:
    p, q = (tree.response_logp(table) for table in (first, second))
    return float((p.exp() * (p - q)).sum())


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_loss_beside_a_kl_ends_on_its_optimum(name: str, direction: str, tree: Tree) -> None:
    pairs, path = Pairs(tree), "tiled" if (name, tree.depth) == ("sft", 1) else "frozen"
    learned = descend(lambda logits: pairs.loss(logits, name, direction, path), pairs.problem.reference)
    assert nats_apart(tree, optimum(tree, name, direction), learned.log_softmax(-1)) < NATS
    wrong = optimum(tree, name, "reverse" if direction == "forward" else "forward")
    assert nats_apart(tree, wrong, learned.log_softmax(-1)) > 10 * NATS, "the other direction ends elsewhere"


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_kl_without_its_gradient_ends_elsewhere(direction: str) -> None:
    tree = TREES[0]
    pairs = Pairs(tree)
    lost = descend(
        lambda logits: pairs.loss(logits, "sft", direction, "frozen", gradient=False), pairs.problem.reference
    )
    assert nats_apart(tree, optimum(tree, "sft", direction), lost.log_softmax(-1)) > 10 * NATS


# ---- distillation into a policy that cannot be its teacher ----

TEACHER = torch.tensor([0.42, 0.06, 0.02, 0.06, 0.44], dtype=torch.float64).log()
# The policy is a bell whose place alone is learned, where the teacher has two peaks.
PLACES = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
BELL = Head(torch.stack([-0.35 * PLACES.square(), PLACES], dim=1))
START = torch.tensor([1.0, 0.1], dtype=torch.float64)


def direct(direction: str, weight: float, shift: float) -> float:
    """The divergence of a bell of fixed width that is `shift`ed, in numpy."""
    z = -0.35 * PLACES.numpy() ** 2 + shift * PLACES.numpy()
    p, q = np.exp(z) / np.exp(z).sum(), TEACHER.exp().numpy()
    m = weight * q + (1 - weight) * p
    kl = lambda a, b: float((a * np.log(a / b)).sum())  # noqa: E731
    return {
        "forward": lambda: kl(q, p),
        "reverse": lambda: kl(p, q),
        "js": lambda: weight * kl(q, m) + (1 - weight) * kl(p, m),
    }[direction]()


def distilled(direction: Any, weight: float | None) -> float:
    """The shift that the loss kl learns, through the operator; the width of the bell stays as it is."""
    term = KLTerm(direction, "chosen", weight=weight)
    loss = configured_loss("kl", None, None, 0.0, term)
    teacher = Head(torch.eye(5, dtype=torch.float64))
    extras: list[Any] = ["reverse_kl", *([JensenShannon(weight)] if weight else [])]
    index, targets = torch.tensor([0, 1]), torch.tensor([0, 4])

    def value(shift: Tensor) -> Tensor:
        hidden = torch.stack([torch.ones_like(shift[0]), shift[0]]).expand(2, 2)
        stats = linear_token_stats(hidden, BELL, TEACHER.expand(2, 5), teacher, targets, extras=extras)
        return loss(stats, score_pairs(stats, index, 1), index, 1).per_pair.sum()

    return float(descend(value, START[1:]))


def test_distillation_ends_on_the_optimum_of_its_divergence() -> None:
    """Along one path of policies, where the three divergences have optima of their own."""
    ends = {}
    for direction, weight in (("forward", None), ("reverse", None), ("js", 0.5), ("js", 0.1)):
        w = weight or 0.5
        right = minimize_scalar(lambda s, d=direction, w=w: direct(d, w, s), bounds=(-0.2, 3), method="bounded").x
        learned = distilled(direction, weight)
        assert direct(direction, w, learned) - direct(direction, w, right) < 1e-6, direction
        ends[direction, w] = learned
    far = [abs(a - b) for a in ends.values() for b in ends.values() if a is not b]
    assert min(far) > 0.02, ends
