"""Optima with infinite data in closed form: everything that learns from rewards, DPO, f-DPO, imitation.

A KL in the *reward* and a KL in the *loss* have different optima on trees: in the reward, the symbols that lead to a
node pay for its KL, and in the loss it acts on its own node alone (see `tdpo.policy_gradient.kl_loss`). Optima without
a closed form are searched for in `searching.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .objectives import all_pairs
from .tabular_problems import Problem

Solve = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # log q, values [n, symbols] to log π [n, symbols], value [n]
HALVINGS = 200  # of a bisection: to the last bit


def kl_in_reward(problem: Problem, coefficient: float) -> Tensor:
    """max E_π[r] − c·KL(π‖π_ref) over responses, so π ∝ π_ref·exp(r/c): node_logp [nodes, symbols]."""
    logits = problem.reference_logp + problem.rewards / coefficient
    return problem.tree.from_responses(logits.softmax(-1))


def kl_in_loss(problem: Problem, direction: str, coefficient: float) -> Tensor:
    """The stationary point of E_π[advantage] − c·Σ KL of the visited nodes: node_logp [nodes, symbols].

    In each node the distribution of the next symbol is the best for the reward expected below it; KLs further down are
    not part of that expectation. `direction` is "forward" or "reverse".
    """

    def solve(logq: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if direction == "forward":
            logp = _best_forward(logq, values, coefficient)
        else:
            logp = (logq + values / coefficient).log_softmax(-1)
        return logp, (logp.exp() * values).sum(-1)

    return _from_the_end(problem, solve)


def forward_kl_of_responses(problem: Problem, coefficient: float) -> Tensor:
    """max E_π[r] − c·KL(π_ref‖π) over responses: π(y) = c·π_ref(y)/(λ − r(y)), λ making it sum to one.

    The KL is taken over responses of the *reference*, as it is on data.
    """
    logp = _best_forward(problem.reference_logp[None], problem.rewards[None], coefficient)[0]
    return problem.tree.from_responses(logp.exp())


def dpo(problem: Problem, beta: float) -> Tensor:
    """With preferences that are Bradley–Terry of s·r, π ∝ π_ref·exp(s·r/β) (Rafailov et al. 2023, eq. 4)."""
    return kl_in_reward(problem, beta / problem.settings.preference_scale)


def f_dpo_forward(problem: Problem, beta: float) -> Tensor:
    """f-DPO with f(u) = −log u: β·f′(u) = s·r + a constant, so the optimum of the forward KL over responses."""
    return forward_kl_of_responses(problem, beta / problem.settings.preference_scale)


def f_dpo_js(problem: Problem, beta: float) -> Tensor:
    """f-DPO with Jensen–Shannon: log(u/(1 + u)) = s·r/β − λ, so u = 1/(exp(λ − s·r/β) − 1), E_ref[u] = 1."""
    scaled = problem.rewards * problem.settings.preference_scale / beta
    reference = problem.reference_logp.exp()
    # λ = max + gap. E_ref[u] falls with the gap: it is at most 1 at gap = log 2, where all u are, and unbounded at 0.
    low, high = 0.0, 0.6931471805599454
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        ratio = 1 / torch.expm1(scaled.max() + middle - scaled)
        low, high = (middle, high) if float(reference @ ratio) > 1 else (low, middle)
    probability = reference / torch.expm1(scaled.max() + high - scaled)
    return problem.tree.from_responses(probability / probability.sum())


def anchored_imitation(problem: Problem, coefficient: float) -> Tensor:
    """SFT on chosen responses plus c·KL(π_ref‖π) at the nodes of both: in each node a mixture with the reference.

    With t(a) the mass of chosen responses that take symbol a, and m the mass of the pairs' responses that pass
    through the node, π(a) = (t(a) + c·m·q(a))/(Σ t + c·m).
    """
    pairs = all_pairs(problem)
    chosen, rejected = problem.tree.taken(pairs.sum(-1)), problem.tree.taken(pairs.sum(-2))
    visits = 0.5 * (chosen + rejected).sum(-1, keepdim=True)
    mass = chosen + coefficient * visits * problem.reference.exp()
    return (mass / mass.sum(-1, keepdim=True)).log()


def best_of(problem: Problem, count: int) -> Tensor:
    """The best of `count` responses of the reference, a random one of equals: node_logp [nodes, symbols]."""
    reference = problem.reference_logp.exp()
    at_most = (reference * (problem.rewards[None] <= problem.rewards[:, None])).sum(-1)
    same = (reference * (problem.rewards[None] == problem.rewards[:, None])).sum(-1)
    chosen = at_most.clamp(max=1.0) ** count - (at_most - same).clamp(min=0.0) ** count
    return problem.tree.from_responses((chosen * reference / same).clamp_min(1e-300))


def cooled(problem: Problem, temperature: float) -> Tensor:
    """The reference sampled at another temperature, symbol by symbol."""
    return (problem.reference / temperature).log_softmax(-1)


def _from_the_end(problem: Problem, solve: Solve) -> Tensor:
    """Solve the nodes level by level from the last; the values of a level's nodes are those of its parents' symbols."""
    tree, values, tables = problem.tree, problem.rewards, []
    for level in reversed(range(tree.depth)):
        table, values = solve(problem.reference[tree.level(level)], values.reshape(-1, tree.symbols))
        tables.append(table)
    return torch.cat(tables[::-1])


def _best_forward(logq: Tensor, values: Tensor, coefficient: float) -> Tensor:
    """log π of the best π for Σ π·v − c·KL(q‖π), rows [n, symbols]: π = c·q/(λ − v), λ > max v by bisection."""
    q, peak = logq.exp(), values.amax(-1, keepdim=True)
    low, high = torch.zeros_like(peak), torch.full_like(peak, coefficient)
    # λ = peak + gap. Σ c·q/(peak + gap − v) falls with the gap: at most 1 at gap = c, at least 1 at gap = c·q(peak).
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_small = (coefficient * q / (peak + middle - values)).sum(-1, keepdim=True) > 1
        narrower = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
        if torch.equal(narrower[0], low) and torch.equal(narrower[1], high):
            break
        low, high = narrower
    return (coefficient * q / (peak + high - values)).log().log_softmax(-1)
