"""Where a method ends with infinite data.

Closed forms for everything that learns from rewards, for DPO and for SFT; for the rest a root of the loss's gradient.
Two of the closed forms differ on trees though they are called by one name: a KL in the *reward* is paid for by the
symbols that lead to it, a KL in the *loss* acts on its own node alone (see `tdpo.policy_gradient.kl_loss`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .problems import Problem

Field = Callable[[Tensor], Tensor]  # node logits [..., nodes, symbols] to a loss [...]
Solve = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # log q, values [n, symbols] to log π [n, symbols], value [n]

STEP = 1e-6  # of the differences that the Jacobian is made of; where the search ends does not depend on it
TOLERANCE = 1e-8  # of every entry of the gradient where a search has ended


def kl_in_reward(problem: Problem, coefficient: float) -> Tensor:
    """max E_π[r] − c·KL(π‖π_ref) over responses, so π ∝ π_ref·exp(r/c): node_logp [nodes, symbols].

    DPO's optimum too, where preferences follow Bradley–Terry (Rafailov et al. 2023, eq. 4).
    """
    logits = problem.reference_logp + problem.rewards / coefficient
    return problem.tree.from_responses(logits.softmax(-1))


def kl_in_loss(problem: Problem, direction: str, coefficient: float) -> Tensor:
    """Where E_π[advantage] − c·Σ KL of the visited nodes stands still: node_logp [nodes, symbols].

    In each node the next symbol's distribution is best for the reward expected below it; KLs further down are not
    part of that expectation. `direction` is "forward" or "reverse".
    """

    def solve(logq: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        logp = _best_forward(logq, values, coefficient) if direction == "forward" else (
            (logq + values / coefficient).log_softmax(-1)
        )
        return logp, (logp.exp() * values).sum(-1)

    return _from_the_end(problem, solve)


def forward_kl_of_responses(problem: Problem, coefficient: float) -> Tensor:
    """max E_π[r] − c·KL(π_ref‖π) over responses: π(y) = c·π_ref(y)/(λ − r(y)), λ making it sum to one.

    The KL is taken where the *reference* goes, as it is on data. It is the optimum of f-DPO with the forward KL too.
    """
    logp = _best_forward(problem.reference_logp[None], problem.rewards[None], coefficient)[0]
    return problem.tree.from_responses(logp.exp())


def anchored_imitation(problem: Problem, target: Tensor, coefficient: float) -> Tensor:
    """SFT on responses drawn from `target` [K], plus c·KL(π_ref‖π): the mixture (target + c·π_ref)/(1 + c)."""
    mixture = (target + coefficient * problem.reference_logp.exp()) / (1 + coefficient)
    return problem.tree.from_responses(mixture)


def best_of(problem: Problem, count: int) -> Tensor:
    """The best of `count` responses of the reference, equal rewards by chance: node_logp [nodes, symbols]."""
    reference = problem.reference_logp.exp()
    at_most = (reference * (problem.rewards[None] <= problem.rewards[:, None])).sum(-1)
    same = (reference * (problem.rewards[None] == problem.rewards[:, None])).sum(-1)
    chosen = at_most.clamp(max=1.0) ** count - (at_most - same).clamp(min=0.0) ** count
    probability = chosen * reference / same
    return problem.tree.from_responses(probability.clamp_min(1e-300))


def cooled(problem: Problem, temperature: float) -> Tensor:
    """The reference sampled at another temperature, symbol by symbol."""
    return (problem.reference / temperature).log_softmax(-1)


def minimum(loss: Field, start: Tensor) -> Tensor:
    """node_logp of the least `loss` that a trust region finds from `start` on, ended by `root_of_gradient`; float64.

    Raises:
        RuntimeError: as `root_of_gradient`.
    """
    from scipy.optimize import minimize

    slopes = _Slopes(loss, start.shape)
    result = minimize(
        slopes.value, start.flatten().numpy(), jac=slopes.gradient, hess=slopes.jacobian, method="trust-exact",
        options={"gtol": TOLERANCE, "maxiter": 500},
    )  # fmt: skip
    return root_of_gradient(loss, torch.from_numpy(result.x).reshape(start.shape))


def root_of_gradient(loss: Field, start: Tensor) -> Tensor:
    """node_logp where the gradient of `loss` vanishes, from `start` on; float64.

    For a loss that stops a gradient, as TDPO2 does: its value need not be least where the gradient vanishes.

    Raises:
        RuntimeError: an entry of the gradient stays above 1e-8; the message says how large it is.
    """
    from scipy.optimize import root

    slopes = _Slopes(loss, start.shape)
    options = {"xtol": 1e-14, "ftol": 1e-14}
    result = root(slopes.gradient, start.flatten().numpy(), jac=slopes.jacobian, method="lm", options=options)
    return slopes.solution(result.x)


class _Slopes:
    """A loss of tables as functions of flat numpy vectors: value, gradient, and its Jacobian by finite differences."""

    def __init__(self, loss: Field, shape: torch.Size) -> None:
        self.loss, self.shape = loss, shape

    def value(self, flat: NDArray[np.float64]) -> float:
        return float(self.loss(torch.from_numpy(flat).reshape(self.shape)))

    def gradient(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._gradient(torch.from_numpy(flat)[None])[0]

    def jacobian(self, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = torch.from_numpy(flat) + STEP * torch.eye(flat.size, dtype=torch.float64)
        return (self._gradient(moved) - self.gradient(flat)).T / STEP

    def solution(self, flat: NDArray[np.float64]) -> Tensor:
        largest = float(np.abs(self.gradient(flat)).max())
        if not largest <= TOLERANCE:
            raise RuntimeError(f"the gradient's largest entry is still {largest:.1e}, asked for {TOLERANCE:.0e}")
        return torch.from_numpy(flat).reshape(self.shape).log_softmax(-1)

    def _gradient(self, rows: Tensor) -> NDArray[np.float64]:
        logits = rows.reshape(-1, *self.shape).requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(logits).sum(), logits)
        return gradient.flatten(1).numpy()


def _from_the_end(problem: Problem, solve: Solve) -> Tensor:
    """Solve the nodes level by level, the last first; the values of a level's nodes are those of its parents' symbols."""
    tree, values, tables = problem.tree, problem.rewards, []
    for level in reversed(range(tree.depth)):
        table, values = solve(problem.reference[tree.level(level)], values.reshape(-1, tree.symbols))
        tables.append(table)
    return torch.cat(tables[::-1])


def _best_forward(logq: Tensor, values: Tensor, coefficient: float) -> Tensor:
    """log π of the best π for Σ π·v − c·KL(q‖π), rows [n, symbols]: π = c·q/(λ − v), λ > max v by bisection."""
    q, peak = logq.exp(), values.amax(-1, keepdim=True)
    low, high = torch.zeros_like(peak), torch.full_like(peak, coefficient)
    # λ = peak + gap: Σ c·q/(peak + gap − v) falls in gap, is 1 or less at gap = c, and is at least 1 at gap = c·q(peak).
    for _ in range(200):
        middle = (low + high) / 2
        too_small = (coefficient * q / (peak + middle - values)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return (coefficient * q / (peak + high - values)).log().log_softmax(-1)
