"""The methods that are compared, and where each ends with infinite data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import optima
from .learning import Constraint
from .objectives import (
    HELD,
    PAIR_LOSSES,
    STOPS_A_GRADIENT,
    all_pairs,
    pair_objective,
)
from .problems import Problem

Optimum = Callable[[Problem, float, Tensor], Tensor]  # problem, strength, where to start → node_logp


@dataclass(frozen=True)
class Method:
    """`data` is what it learns from: "rewards", "pairs", or "reference" for what is only sampled otherwise.

    `direction` is the KL that holds it ("" for none), `strengths` go from the strongest hold to the weakest, and
    `learners` are what `learning` has for it: algorithms where it learns from rewards, else the name of the loss.
    """

    label: str
    data: str
    direction: str
    strengths: tuple[float, ...]
    optimum: Optimum
    learners: tuple[str, ...] = ()
    constraint: Constraint | None = None


def _grid(first: float, last: float, count: int = 12) -> tuple[float, ...]:
    return tuple(float(x) for x in np.geomspace(first, last, count))


def _root(name: str) -> Optimum:
    search = optima.root_of_gradient if name in STOPS_A_GRADIENT else optima.minimum
    return lambda problem, strength, start: search(
        pair_objective(problem, all_pairs(problem), name, strength), start
    )


def _rewards(label: str, direction: str, place: str, optimum: Optimum) -> Method:
    constraint = Constraint(direction, place)
    return Method(label, "rewards", direction, _grid(10.0, 0.02), optimum, ("ppo", "rloo"), constraint)


METHODS: dict[str, Method] = {
    "rewards_reverse": _rewards(
        "rewards, reverse KL in the reward", "reverse", "reward", lambda p, c, _: optima.kl_in_reward(p, c)
    ),
    "rewards_reverse_loss": _rewards(
        "rewards, reverse KL in the loss", "reverse", "loss", lambda p, c, _: optima.kl_in_loss(p, "reverse", c)
    ),
    "rewards_forward_loss": _rewards(
        "rewards, forward KL in the loss", "forward", "loss", lambda p, c, _: optima.kl_in_loss(p, "forward", c)
    ),
    **{
        name: Method(label, "pairs", direction, _grid(40.0, 0.08), _root(name), (name,))
        for name, label, direction in (
            ("dpo", "DPO", "reverse"),
            ("tdpo1", "TDPO1", "forward"),
            ("tdpo2", "TDPO2 (α 0.5)", "forward"),
            ("f_dpo_forward", "f-DPO, forward", "forward"),
            ("f_dpo_js", "f-DPO, Jensen–Shannon", ""),
        )
    },
    **{
        name: Method(label, "pairs", direction, _grid(10.0, 0.005), _root(name), (name,))
        for name, label, direction in (
            ("dpo_forward", "DPO + forward KL", "forward"),
            ("dpo_reverse", "DPO + reverse KL", "reverse"),
            ("sft_forward", "SFT + forward KL", "forward"),
            ("sft_reverse", "SFT + reverse KL", "reverse"),
        )
    },
    "best_of": Method(
        "best of n", "reference", "", (2, 3, 4, 6, 8, 12, 16, 32, 64), lambda p, n, _: optima.best_of(p, n)
    ),
    "cooled": Method(
        "reference, cooled", "reference", "", (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
        lambda p, t, _: optima.cooled(p, t),
    ),
}  # fmt: skip
assert set(PAIR_LOSSES) | set(HELD) <= set(METHODS)


def path(problem: Problem, name: str) -> list[tuple[float, Tensor]]:
    """(strength, node_logp) of the optimum at every strength of the method, each searched from the one before."""
    points: list[tuple[float, Tensor]] = []
    start = problem.reference
    for strength in METHODS[name].strengths:
        start = METHODS[name].optimum(problem, strength, start)
        points.append((strength, start))
    return points



