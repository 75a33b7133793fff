"""Every problem with every method: the tables of the exact benchmark.

- `infinite`: each method at each of its strengths, with infinite data.
- `matched`: each method at the strength at which it has a given reward or KL, found and not interpolated.
- `finite`: what 100 studies of 50, 500 and 5000 scored responses make of it, at the strength that would have given
  half of the possible gain in reward.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .learning import ROLLOUTS, learn_from_pairs, learn_from_rewards
from .measures import MEASURES, distance, measure
from .methods import METHODS, path
from .problems import Problem, all_problems, make_problem
from .trees import Tree

TREES = (Tree(7), Tree(20), Tree(3, 3))
FINITE_TREES = (Tree(7), Tree(3, 3))
GAINS = (0.5, 0.8)  # of the reward between the reference's and 1 at which methods are compared
KLS = {"forward_kl": 0.2, "reverse_kl": 0.2}  # nats a response
FINITE_GAIN = 0.5
RATES = (0.03, 0.1, 0.3)  # Adam's learning rates to choose from
STUDIES = 100
TRIAL_STUDIES = 10
LOG_STRENGTH = 1e-4  # to which the strength is found at which a method has a target

Row = dict[str, Any]
Table = dict[str, list[Row]]


@dataclass(frozen=True)
class Settings:
    trees: tuple[Tree, ...] = TREES
    finite_trees: tuple[Tree, ...] = FINITE_TREES
    studies: int = STUDIES


def run_problem(problem: Problem, settings: Settings) -> Table:
    """The rows of one problem, by table."""
    torch.set_num_threads(1)
    table: Table = {"infinite": [], "matched": [], "finite": []}
    for name in METHODS:
        points = path(problem, name)
        table["infinite"] += [_row(problem, name, strength, node_logp) for strength, node_logp in points]
        for measured, target in _targets(problem):
            point = _reached(problem, name, points, measured, target)
            if point is not None:
                row = _row(problem, name, *point)
                table["matched"].append({**row, "matched": measured, "target": target})
        if problem.tree in settings.finite_trees:
            table["finite"] += _finite(problem, name, points, settings.studies)
    return table


def problems(settings: Settings) -> list[Problem]:
    return list(all_problems(settings.trees))


def _targets(problem: Problem) -> Iterator[tuple[str, float]]:
    start = float(measure(problem, problem.reference)["reward"])
    for gain in GAINS:
        yield "reward", start + gain * (1 - start)
    yield from KLS.items()


def _row(problem: Problem, name: str, strength: float, node_logp: Tensor) -> Row:
    numbers = {key: float(value) for key, value in measure(problem, node_logp).items()}
    return {**_place(problem, name), "strength": strength, **numbers}


def _place(problem: Problem, name: str) -> Row:
    tree = problem.tree
    return {"tree": f"{tree.symbols}^{tree.depth}", "shape": problem.shape, "rewards": problem.reward, "method": name}


def _reached(
    problem: Problem, name: str, points: Sequence[tuple[float, Tensor]], measured: str, target: float
) -> tuple[float, Tensor] | None:
    """The first strength, from the strongest hold on, at which the method has `target`; None where it never has.

    A root in the logarithm of the strength, between the two points that have the target between them.
    """
    from scipy.optimize import brentq

    if name == "best_of":  # its strength is a number of responses: there is nothing between two of them
        return None

    def beyond(node_logp: Tensor) -> float:
        return float(measure(problem, node_logp)[measured]) - target

    first = next((i for i, (_, node_logp) in enumerate(points) if beyond(node_logp) >= 0), None)
    if not first:  # never, or already at the strongest hold
        return None
    (held, start), (free, _) = points[first - 1], points[first]

    def gap(log_strength: float) -> float:
        return beyond(METHODS[name].optimum(problem, math.exp(log_strength), start))

    strength = math.exp(brentq(gap, math.log(held), math.log(free), xtol=LOG_STRENGTH))
    return strength, METHODS[name].optimum(problem, strength, start)


def _finite(problem: Problem, name: str, points: Sequence[tuple[float, Tensor]], studies: int) -> Iterator[Row]:
    start = float(measure(problem, problem.reference)["reward"])
    point = _reached(problem, name, points, "reward", start + FINITE_GAIN * (1 - start))
    if point is None:
        return
    strength, best = point
    # The rate is chosen on a problem of the same kind whose likely symbols are others.
    trial = make_problem(problem.tree, problem.shape, problem.reward, seed=1)
    trial_best = METHODS[name].optimum(trial, strength, trial.reference)
    for learner in METHODS[name].learners:
        for scored in ROLLOUTS:
            rate = min(
                RATES,
                key=lambda rate: _distance(trial, trial_best, _learn(trial, name, learner, strength, scored, TRIAL_STUDIES, rate, 1)),
            )
            node_logp = _learn(problem, name, learner, strength, scored, studies, rate, 0)
            yield {
                **_place(problem, name), "learner": learner, "strength": strength, "scored": scored, "rate": rate,
                "distance": _distance(problem, best, node_logp),
                **_moments(measure(problem, node_logp)),
            }  # fmt: skip


def _learn(
    problem: Problem, name: str, learner: str, strength: float, scored: int, studies: int, rate: float, seed: int
) -> Tensor:
    common: dict[str, Any] = {"scored": scored, "studies": studies, "rate": rate, "seed": seed}
    constraint = METHODS[name].constraint
    if constraint is None:
        return learn_from_pairs(problem, learner, strength, **common)
    return learn_from_rewards(problem, learner, constraint, strength, **common)


def _distance(problem: Problem, best: Tensor, node_logp: Tensor) -> float:
    logp = problem.tree.response_logp
    return float(distance(logp(node_logp), logp(best)).mean())


def _moments(numbers: dict[str, Tensor]) -> Row:
    """Means over studies, and standard deviations between them."""
    row: Row = {}
    for name in MEASURES:
        row[name] = float(numbers[name].mean())
        row[f"{name}_sd"] = float(numbers[name].std())
    return row


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """infinite.csv, matched.csv and finite.csv; numbers with nine digits, so that a repetition gives the same bytes."""
    rows: Table = {}
    for table in tables:
        for name, part in table.items():
            rows.setdefault(name, []).extend(part)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        if part:
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(part[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows({key: _shown(value) for key, value in row.items()} for row in part)


def _shown(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


Progress = Callable[[int, int], None]
