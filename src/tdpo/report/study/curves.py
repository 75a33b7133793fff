"""Training curves: for each task and metric the mean over seeds of every method and strength."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..drawing import Figure
from ..numbers import MISSING, show
from .frontiers import rounded
from .study_reading import Curve, StudyRecord, TaskRecord

POINTS = 40
HEIGHT = 250


@dataclass(frozen=True)
class Kind:
    key: str
    title: str
    unit: str
    note: str = ""


DRAWN = "Of PPO and online learning; the others draw no responses while they learn."
ALONG = "Along the chosen responses of pairs; with PPO along its own."
KINDS = (
    Kind("reward_mean", "Mean reward", "of an iteration’s responses", DRAWN),
    Kind("reverse_kl", "Reverse KL", "nats per response", ALONG),
    Kind("forward_kl", "Forward KL", "nats per response", ALONG),
    Kind("accuracy", "Accuracy", "share of pairs", "Margins above zero; a tie counts half."),
    Kind("margin", "Margin", "", "What stands inside the loss’s sigmoid."),
    Kind("loss", "Loss", "nats per pair", "log 2 at the start; SFT’s is another quantity."),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Mean over seeds at each step, and the seeds' extremes where there are several."""

    arm: str
    label: str
    strength: str
    steps: list[float]
    completions: list[float | None]
    mean: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TaskCurves:
    task: TaskRecord
    figures: list[Figure]
    lines: list[list[Line]]  # of each figure


def task_curves(study: StudyRecord, task: TaskRecord) -> TaskCurves:
    figures, lines = [], []
    keys = {kind.key for kind in KINDS}
    others = sorted({key[3] for key in study.curves if key[0] == task.name} - keys)
    for kind in (*KINDS, *(Kind(key, key.replace("_", " "), "") for key in others)):
        own = [
            _line(arm.name, arm.label, s, seeds)
            for arm, s in study.cells
            if (seeds := study.curves.get((task.name, arm.name, s, kind.key)))
        ]
        if own:
            figures.append(_figure(task, kind, own))
            lines.append(own)
    return TaskCurves(task, figures, lines)


def _line(arm: str, label: str, strength: str, seeds: dict[str, Curve]) -> Line:
    """Seeds are averaged over the steps that all of them logged; where they share none, the longest stands alone."""
    shared = set.intersection(*({step for step, _, _ in curve} for curve in seeds.values()))
    curves = list(seeds.values()) if shared else [max(seeds.values(), key=len)]
    at = [{step: (done, value) for step, done, value in curve} for curve in curves]
    steps = _thinned(sorted(shared or at[0]))
    values = [[curve[step][1] for curve in at] for step in steps]
    several = len(curves) > 1
    return Line(
        arm, label, strength, steps, [at[0][step][0] for step in steps], [sum(v) / len(v) for v in values],
        [min(v) for v in values] if several else [], [max(v) for v in values] if several else [],
    )  # fmt: skip


def _thinned(steps: list[float]) -> list[float]:
    """At most POINTS of them, evenly, the first and the last included."""
    if len(steps) <= POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _figure(task: TaskRecord, kind: Kind, lines: list[Line]) -> Figure:
    rows = [
        [line.label, line.strength or MISSING, show(line.mean[0]), show(line.mean[-1]), show(int(line.steps[-1]))]
        for line in lines
    ]
    in_words = " ".join(f"{label} at {s}: from {first} to {last}." for label, s, first, last, _ in rows)
    alt = f"{task.name}: {kind.title} while training. {in_words}"
    heads = ["Method", "Strength", "First", "Last", "Updates"]
    figure = f"{task.id}-curve-{kind.key}"
    return Figure(figure, kind.title, kind.unit, kind.note, alt, heads, rows, [], {"height": HEIGHT})


def curve_data(tasks: list[TaskCurves]) -> list[dict[str, Any]]:
    """What the page's script draws: a figure each, with its lines."""

    def numbers(values: list[Any]) -> list[Any]:
        return [None if value is None else rounded(value) for value in values]

    return [
        {
            "id": figure.id,
            "task": curves.task.index,
            "height": HEIGHT,
            "lines": [
                {"arm": line.arm, "strength": line.strength, "steps": numbers(line.steps),
                 "completions": numbers(line.completions), "mean": numbers(line.mean), "low": numbers(line.low),
                 "high": numbers(line.high)}
                for line in lines
            ],
        }
        for curves in tasks
        for figure, lines in zip(curves.figures, curves.lines, strict=True)
    ]  # fmt: skip
