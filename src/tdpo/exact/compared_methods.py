"""The methods that are compared, and the optimum of each with infinite data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..methods import public_name
from . import optima, searching
from .learning import Constraint
from .objectives import STOPS_A_GRADIENT, all_pairs, pair_objective
from .tabular_problems import Problem

Optimum = Callable[[Problem, float, Tensor], Tensor]  # problem, strength, where to start a search → node_logp


@dataclass(frozen=True)
class Method:
    """A method with its strengths and its optimum.

    `data` is what it learns from: "rewards", "pairs", or "reference" for another way to sample the reference.
    `direction` is the KL that ties it to the reference ("" for none or another divergence). Its strengths are spaced
    evenly in the logarithm between `ends`, the strongest tie and the weakest, or they are `steps`. `learners` are the
    names under which `learning` trains it: algorithms for rewards, or a loss of pairs.
    """

    label: str
    data: str
    direction: str
    optimum: Optimum
    ends: tuple[float, float] = (0.0, 0.0)
    steps: tuple[float, ...] = ()
    learners: tuple[str, ...] = ()
    constraint: Constraint | None = None

    def strengths(self, count: int) -> tuple[float, ...]:
        """Its strengths, from the strongest tie to the reference to the weakest."""
        return self.steps or tuple(float(x) for x in np.geomspace(*self.ends, count))


def _search(name: str) -> Optimum:
    search = searching.root_of_gradient if name in STOPS_A_GRADIENT else searching.minimum
    return lambda problem, strength, start: search(
        pair_objective(problem, all_pairs(problem), name, strength), start
    )  # fmt: skip


def _closed(optimum: Callable[[Problem, float], Tensor]) -> Optimum:
    return lambda problem, strength, _: optimum(problem, strength)


def _rewards(label: str, direction: str, place: str, optimum: Optimum) -> Method:
    constraint = Constraint(direction, place)
    return Method(
        label, "rewards", direction, optimum, (10.0, 0.02), learners=("ppo", "rloo"), constraint=constraint
    )  # fmt: skip


def _pairs(name: str, label: str, direction: str, optimum: Optimum) -> Method:
    """A loss of pairs that is tied to the reference by its β."""
    return Method(label, "pairs", direction, optimum, (40.0, 0.08), learners=(name,))


def _beside_kl(name: str, label: str, direction: str, optimum: Optimum) -> Method:
    """A loss of pairs beside a KL, tied to the reference by the KL's coefficient."""
    return Method(label, "pairs", direction, optimum, (10.0, 0.005), learners=(name,))


METHODS: dict[str, Method] = {
    "rewards_reverse": _rewards("Rewards, reverse KL in the reward", "reverse", "reward", _closed(optima.kl_in_reward)),
    "rewards_reverse_loss": _rewards(
        "Rewards, reverse KL in the loss", "reverse", "loss", lambda p, c, _: optima.kl_in_loss(p, "reverse", c)
    ),
    "rewards_forward_loss": _rewards(
        "Rewards, forward KL in the loss", "forward", "loss", lambda p, c, _: optima.kl_in_loss(p, "forward", c)
    ),
    "dpo": _pairs("dpo", public_name("dpo"), "reverse", _closed(optima.dpo)),
    "tdpo1": _pairs("tdpo1", public_name("tdpo1"), "forward", _search("tdpo1")),
    "tdpo2": _pairs("tdpo2", public_name("tdpo2"), "forward", _search("tdpo2")),
    "f_dpo_forward": _pairs("f_dpo_forward", "f-DPO, forward KL", "forward", _closed(optima.f_dpo_forward)),
    "f_dpo_js": _pairs("f_dpo_js", "f-DPO, Jensen–Shannon", "", _closed(optima.f_dpo_js)),
    "dpo_forward": _beside_kl("dpo_forward", "DPO + forward KL", "forward", _search("dpo_forward")),
    "dpo_reverse": _beside_kl("dpo_reverse", "DPO + reverse KL", "reverse", _search("dpo_reverse")),
    "sft_forward": _beside_kl("sft_forward", "SFT + forward KL", "forward", _closed(optima.anchored_imitation)),
    "sft_reverse": _beside_kl("sft_reverse", "SFT + reverse KL", "reverse", _search("sft_reverse")),
    "best_of": Method(
        "Best of n", "reference", "", lambda p, n, _: optima.best_of(p, int(n)), steps=(2, 3, 4, 6, 8, 12, 16, 32, 64)
    ),
    "cooled": Method(
        "Reference, cooled",
        "reference",
        "",
        _closed(optima.cooled),
        steps=(0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
    ),
}


def path(problem: Problem, name: str) -> list[tuple[float, Tensor]]:
    """(strength, node_logp) of the optimum at every strength of the method, each searched from the one before."""
    points: list[tuple[float, Tensor]] = []
    start = problem.reference
    for strength in METHODS[name].strengths(problem.settings.strengths):
        start = METHODS[name].optimum(problem, strength, start)
        points.append((strength, start))
    return points
