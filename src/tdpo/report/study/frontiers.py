"""Frontiers: what a method's reward costs in distance from the reference and in diversity, over its strengths.

The page draws them from `frontier_data`, so that a reader can change the axis; here stand the words and the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...methods import REFERENCE
from ...records.dotted import text_at
from ...records.metric_names import ALL_DIVERSITY, KINDS, KL, MODES, Metric, named
from ..drawing import Figure
from ..numbers import MISSING, show, show_interval
from .study_reading import Estimate, StudyRecord, TaskRecord

HEIGHT = 350
DIGITS = 5


@dataclass(frozen=True)
class TaskFrontiers:
    task: TaskRecord
    figures: list[Figure]
    missing: str = ""


def height_axis(study: StudyRecord, task: TaskRecord) -> str:
    """What a frontier of the task has on its vertical axis: reward, or held-out accuracy where there is none."""
    return "reward_mean" if study.has(task.name, "reward_mean") else "accuracy"


def axis_title(study: StudyRecord, task: TaskRecord) -> str:
    return named(height_axis(study, task)).title


def shown_metrics(study: StudyRecord, group: str) -> list[Metric]:
    """The metrics of a group that some task has."""
    metrics = {"kl": KL, "diversity": ALL_DIVERSITY, "modes": MODES}[group]
    return [m for m in metrics if any(study.has(task.name, m.key) for task in study.tasks)]


def default_metric(study: StudyRecord, task: TaskRecord, group: str) -> Metric | None:
    """The metric that a group shows first: the reverse KL, or the study's primary diversity. If the task lacks it, the
    first metric that it has."""
    own = [m for m in shown_metrics(study, group) if study.has(task.name, m.key)]
    preferred = primary_diversities(study) if group == "diversity" else ["reverse_kl"]
    of_key = {metric.key: metric for metric in own}
    return next((of_key[key] for key in preferred if key in of_key), own[0] if own else None)


def primary_diversities(study: StudyRecord) -> list[str]:
    """What the study's questions are about, in their order, then what its claims are judged by."""
    questions = study.answers.get("questions")
    asked = [text_at(entry, "metric") for entry in questions] if isinstance(questions, list) else []
    return [*asked, text_at(study.claims, "primary_diversity"), "embedding_diversity"]


def task_frontiers(study: StudyRecord, task: TaskRecord) -> TaskFrontiers:
    height = height_axis(study, task)
    word = "Reward" if height == "reward_mean" else "Held-out accuracy"
    figures = [
        _figure(study, task, group, [default], f"{word} against {title}", note)
        for group, title, note in (
            ("kl", "distance from the reference", "Up and to the left is better."),
            ("diversity", "diversity", "Up and to the right is better; with self-BLEU to the left."),
        )
        if (default := default_metric(study, task, group))
    ]
    for metric in MODES:
        if study.has(task.name, metric.key):
            title = f"{word} against {metric.title[0].lower()}{metric.title[1:]}"
            figures.append(_figure(study, task, metric.key, [metric], title, _modes_note(task, metric)))
    drawn = [figure for figure in figures if figure]
    missing = "" if drawn else "Neither a reward nor an accuracy was measured together with a KL or a diversity."
    return TaskFrontiers(task, drawn, missing)


def _modes_note(task: TaskRecord, metric: Metric) -> str:
    if metric.key == "mode_coverage" and task.modes:
        return f"Of {len(task.modes)} known modes. Up and to the right is better."
    return "Up and to the right is better."


def _figure(
    study: StudyRecord, task: TaskRecord, group: str, default: list[Metric], title: str, note: str
) -> Figure | None:
    height = height_axis(study, task)
    columns = default
    if group in ("kl", "diversity"):
        columns = [m for m in shown_metrics(study, group) if study.has(task.name, m.key)]
    cells = [(arm, s) for arm, s in study.cells if study.estimate(task.name, arm.name, s, height)]
    points = [(arm, s) for arm, s in cells if study.estimate(task.name, arm.name, s, default[0].key)]
    if not points:
        return None
    heads = ["Method", "Strength", named(height).title, *(m.title + (" ↓" if m.lower else "") for m in columns)]
    rows = [
        [arm.label, s or MISSING, *(_words(study.estimate(task.name, arm.name, s, key))
         for key in (height, *(m.key for m in columns)))]
        for arm, s in cells
    ]  # fmt: skip
    in_words = " ".join(
        f"{arm.label}{f' at {s}' if s else ''}: {_value(study, task, arm.name, s, default[0].key)}, "
        f"{_value(study, task, arm.name, s, height)}."
        for arm, s in points
    )
    alt = f"{task.name}: {axis_title(study, task)} against {default[0].axis}. {in_words}"
    layout = {"height": HEIGHT}
    return Figure(f"{task.id}-{group}", title, "", note, alt, heads, rows, [], layout)


def _words(estimate: Estimate | None) -> str:
    return f"{show(estimate.value)} {show_interval(estimate.limits)}".strip() if estimate else MISSING


def _value(study: StudyRecord, task: TaskRecord, arm: str, strength: str, key: str) -> str:
    estimate = study.estimate(task.name, arm, strength, key)
    return show(estimate.value) if estimate else MISSING


def frontier_data(study: StudyRecord, frontiers: list[TaskFrontiers]) -> dict[str, Any]:
    """Everything that the page's script needs to draw any frontier: per task the points with all their metrics."""
    used = [m for group in ("kl", "diversity", "modes") for m in shown_metrics(study, group)]
    tasks = []
    for task in study.tasks:
        keys = [height_axis(study, task), *(m.key for m in used)]
        tasks.append(
            {
                "name": task.name,
                "y": keys[0],
                "yTitle": axis_title(study, task),
                "points": [
                    {"arm": arm.name, "strength": s, "values": values}
                    for arm, s in study.cells
                    if (values := _values(study, task.name, arm.name, s, keys))
                ],
            }
        )
    return {
        "tasks": tasks,
        "metrics": {m.key: {"title": m.title, "axis": m.axis, "lower": m.lower} for m in used},
        "figures": [
            {"id": figure.id, "task": shown.task.index, "group": figure.id.removeprefix(f"{shown.task.id}-"),
             "metric": _start(study, shown.task, figure), "height": figure.layout["height"]}
            for shown in frontiers
            for figure in shown.figures
        ],
        "reference": REFERENCE,
    }  # fmt: skip


def _start(study: StudyRecord, task: TaskRecord, figure: Figure) -> str:
    group = figure.id.removeprefix(f"{task.id}-")
    metric = default_metric(study, task, group) if group in ("kl", "diversity") else None
    return metric.key if metric else group


def _values(study: StudyRecord, task: str, arm: str, strength: str, keys: list[str]) -> dict[str, list[float | None]]:
    values: dict[str, list[float | None]] = {}
    for key in keys:
        estimate = study.estimate(task, arm, strength, key)
        if estimate:
            values[key] = [rounded(estimate.value), *(rounded(limit) for limit in estimate.limits or ())]
    return values


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def diversity_groups(study: StudyRecord) -> list[tuple[str, list[Metric]]]:
    """The choices of the diversity axis, by how the diversity is taken."""
    metrics = shown_metrics(study, "diversity")
    prefixes = {"": [m for m in metrics if not m.key.startswith(("gated_", "across_"))]}
    prefixes |= {p: [m for m in metrics if m.key.startswith(p)] for p in ("gated_", "across_")}
    return [(KINDS[prefix], group) for prefix, group in prefixes.items() if group]
