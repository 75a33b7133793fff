"""Every problem with every method: the tables of the exact benchmark.

- `infinite`: each method at each of its strengths, with infinite data.
- `matched`: each method at the strength at which it has a given reward or KL; the strength is searched for, and not
  interpolated.
- `finite`: 100 studies each with 50, 500 and 5,000 scored responses, at the strength that gives half of the possible
  gain in reward with infinite data.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .compared_methods import METHODS, path
from .learning import learn_from_pairs, learn_from_rewards
from .measures import distance, measure
from .tabular_problems import Problem, make_problem

LOG_STRENGTH = 1e-5  # precision, in its logarithm, of the strength at which a method has a target
TRIES = 12  # of that search; smooth methods need half of them
MISSED = 1e-5  # largest distance from the target; if it is larger, the optimum jumps over the target
TRIAL_SEED = 1  # added to the seed of the settings: rates are chosen on other data, where other symbols are likely
DIGITS = 5  # of a number in a table

Row = dict[str, Any]
Tables = dict[str, list[Row]]
TABLES = ("infinite", "matched", "finite")


def run_problem(problem: Problem) -> Tables:
    """The rows of one problem, by table."""
    tables: Tables = {name: [] for name in TABLES}
    tables["infinite"].append(_row(problem, "reference", "", problem.reference))
    for name in METHODS:
        points = path(problem, name)
        tables["infinite"] += [_row(problem, name, strength, node_logp) for strength, node_logp in points]
        for measure_name, target in _targets(problem):
            if point := reached(problem, name, points, measure_name, target):
                row = _row(problem, name, *point)
                tables["matched"].append({"matched": measure_name, "target": target, **row})
        if problem.tree in problem.settings.finite_trees and problem.reward in problem.settings.finite_rewards:
            tables["finite"] += _finite(problem, name, points)
    return tables


def _targets(problem: Problem) -> Iterator[tuple[str, float]]:
    for gain in problem.settings.gains:
        yield "reward", _reward_after(problem, gain)
    yield "forward_kl", problem.settings.forward_kl
    yield "reverse_kl", problem.settings.reverse_kl


def _reward_after(problem: Problem, gain: float) -> float:
    """The reward that closes this share of the gap between the reference's and 1, the best."""
    start = float(measure(problem, problem.reference)["reward"])
    return start + gain * (1 - start)


def _row(problem: Problem, name: str, strength: float | str, node_logp: Tensor) -> Row:
    numbers = {key: float(value) for key, value in measure(problem, node_logp).items()}
    return {**_place(problem, name), "strength": strength, **numbers}


def _place(problem: Problem, name: str) -> Row:
    return {"tree": problem.tree.name, "shape": problem.shape, "rewards": problem.reward, "method": name}


def reached(
    problem: Problem, name: str, points: Sequence[tuple[float, Tensor]], measure_name: str, target: float
) -> tuple[float, Tensor] | None:
    """The first strength, from the strongest on, at which the method has the `target`, and its node_logp there.

    It is a root in the logarithm of the strength, between the two `points` on both sides of the target. None where
    the method never has the target, jumps over it, is beyond it at its strongest, or has only whole strengths.
    """
    from scipy.optimize import brentq

    if name == "best_of":  # its strength is a number of responses
        return None

    def beyond(node_logp: Tensor) -> float:
        return float(measure(problem, node_logp)[measure_name]) - target

    first = next((i for i, (_, node_logp) in enumerate(points) if beyond(node_logp) >= 0), None)
    if not first:
        return None
    (stronger, start), (weaker, _) = points[first - 1], points[first]

    def gap(log_strength: float) -> float:
        nonlocal start
        node_logp = METHODS[name].optimum(problem, math.exp(log_strength), start)
        if (missing := beyond(node_logp)) < 0:  # on this side of a jump, if there is one
            start = node_logp
        return missing

    strength = math.exp(brentq(gap, math.log(stronger), math.log(weaker), xtol=LOG_STRENGTH, maxiter=TRIES, disp=False))
    node_logp = METHODS[name].optimum(problem, strength, start)
    return (strength, node_logp) if abs(beyond(node_logp)) < MISSED else None


def _finite(problem: Problem, name: str, points: Sequence[tuple[float, Tensor]]) -> Iterator[Row]:
    settings = problem.settings
    point = reached(problem, name, points, "reward", _reward_after(problem, settings.finite_gain))
    if point is None:
        return
    strength, best = point
    trial = make_problem(problem.tree, problem.shape, problem.reward, settings, settings.seed + TRIAL_SEED)
    trial_best = METHODS[name].optimum(trial, strength, trial.reference)
    for learner in METHODS[name].learners:
        for scored, _ in settings.rollouts:
            rates = torch.tensor(settings.rates, dtype=torch.float64).repeat_interleave(settings.trial_studies)
            trials = _learn(trial, name, learner, strength, scored, rates, settings.seed + TRIAL_SEED)
            distances = _distances(trial, trial_best, trials).view(len(settings.rates), -1).mean(-1)
            rate = settings.rates[int(distances.argmin())]
            rates = torch.full((settings.studies,), rate, dtype=torch.float64)
            node_logp = _learn(problem, name, learner, strength, scored, rates, settings.seed)
            yield {
                **_place(problem, name), "learner": learner, "strength": strength, "scored": scored, "rate": rate,
                **_moments("distance", _distances(problem, best, node_logp)),
                **{k: v for key, value in measure(problem, node_logp).items() for k, v in _moments(key, value).items()},
            }  # fmt: skip


def _learn(problem: Problem, name: str, learner: str, strength: float, scored: int, rates: Tensor, seed: int) -> Tensor:
    common: dict[str, Any] = {"scored": scored, "rates": rates, "seed": seed}
    constraint = METHODS[name].constraint
    if constraint is None:
        return learn_from_pairs(problem, learner, strength, **common)
    return learn_from_rewards(problem, learner, constraint, strength, **common)


def _distances(problem: Problem, best: Tensor, node_logp: Tensor) -> Tensor:
    logp = problem.tree.response_logp
    return distance(logp(node_logp), logp(best))


def _moments(name: str, values: Tensor) -> Row:
    """The mean over the studies, and the standard deviation between them."""
    return {name: float(values.mean()), f"{name}_sd": float(values.std())}


def table_text(rows: Iterable[Row]) -> str:
    """The rows as CSV, "" without rows. Numbers have five digits, so that a repetition gives the same bytes."""
    rows = list(rows)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _shown(value: Any) -> Any:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else value


def methods_record() -> list[dict[str, str]]:
    """The methods as a reader of the tables needs them: name, label, data, direction; the reference comes first."""
    reference = {"name": "reference", "label": "Reference", "data": "reference", "direction": ""}
    own = [{"name": n, "label": m.label, "data": m.data, "direction": m.direction} for n, m in METHODS.items()]
    return [reference, *own]
