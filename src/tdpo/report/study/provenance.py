"""How a study was made: machine and versions, settings, and what every method cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...records.dotted import dict_at, text_at
from ...records.metric_names import COSTS
from ...records.study_tables import ALL_SEEDS
from ..numbers import MISSING, number, show, show_duration
from ..tables import Cell, Row, Table, plain
from .study_reading import StudyRecord, TaskRecord, seeds_of


def settings_facts(study: StudyRecord) -> list[tuple[str, str]]:
    """What holds for the whole study, as (name, value); what is not known is left out."""
    about = study.about
    versions = ", ".join(f"{name} {version}" for name, version in dict_at(about, "versions").items())
    cells = dict_at(about, "cells")
    facts = [
        ("Model", text_at(about, "model")),
        ("Budget", _budget(about)),
        ("Seeds", ", ".join(seeds_of(study))),
        ("Runs", ", ".join(f"{number_} {name}" for name, number_ in cells.items() if number_ or name == "done")),
        ("Machine", _in_words(dict_at(about, "hardware"))),
        ("Versions", f"tdpo {text_at(about, 'tdpo')}, {versions}".strip(", ")),
        ("Time at work", _time_at_work(about)),
        ("Last call", _last_call(about)),
    ]
    return [(name, value) for name, value in facts if value]


def _time_at_work(about: dict[str, Any]) -> str:
    if number(about.get("seconds")) is None:
        return ""
    spent = show_duration(about["seconds"])
    return f"{spent}, the sum over all calls of the command; a call that was killed could not add its own"


def _last_call(about: dict[str, Any]) -> str:
    """A study goes on after a stop: these are the times of the last call alone."""
    times = ((word, text_at(about, key)) for word, key in (("began", "started"), ("wrote its tables", "updated")))
    return ", ".join(f"{word} {time.replace('T', ' ').replace('+00:00', ' UTC')}" for word, time in times if time)


def _in_words(facts: dict[str, Any]) -> str:
    """Facts as text, such as "cpu AMD EPYC, cores 2"; empty ones are left out."""
    return ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in facts.items() if value)


def _budget(about: dict[str, Any]) -> str:
    budget = about.get("budget")
    return f"{show(budget)} scored responses a run" if number(budget) is not None else ""


SHOWN_MODES = 24
TASK_FACTS: tuple[tuple[str, Callable[[TaskRecord], Any]], ...] = (
    ("What it asks", lambda task: task.facts.description),
    ("Kind", lambda task: task.facts.kind),
    ("Reward", lambda task: task.facts.reward),
    ("A response is good from", lambda task: task.facts.threshold),
    ("Known modes", lambda task: _some(task.modes)),
    ("Held-out prompts", lambda task: task.facts.prompts),
    ("Responses to each", lambda task: task.facts.samples_per_prompt),
    ("Longest response, tokens", lambda task: task.facts.max_new_tokens),
)


def _some(names: list[str]) -> str:
    """Names as a table has room for: all of a few, else the first ones and how many more there are."""
    more = len(names) - SHOWN_MODES
    return ", ".join(names[:SHOWN_MODES]) + (f" and {more} more" if more > 0 else "") if names else "none"


def task_table(study: StudyRecord) -> Table:
    rows = []
    for title, fact in TASK_FACTS:
        values = [fact(task) for task in study.tasks]
        if any(value is not None for value in values):
            rows.append(Row(title, "", [Cell(MISSING if v is None else show(v)) for v in values]))
    names = [task.name for task in study.tasks]
    return Table("Tasks", names, rows, [None] * len(names), "")


def cost_rows(study: StudyRecord) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """(heads, rows) of the cost of every method: (name, label, cells), each cell a total and the mean of a cell."""
    totals: dict[tuple[str, str], list[float]] = {}
    for (_, name, _, key), seeds in study.results.items():
        values = [estimate.value for seed, estimate in seeds.items() if seed != ALL_SEEDS]
        totals.setdefault((name, key), []).extend(values)
    metrics = [m for m in COSTS if any(totals.get((arm.name, m.key)) for arm in study.arms)]
    rows = []
    for arm in study.arms:
        cells = []
        for metric in metrics:
            values = totals.get((arm.name, metric.key), [])
            form = show_duration if metric.key.endswith("seconds") else _whole
            mean = f"{form(sum(values) / len(values))} a cell" if values else ""
            cells.append(Cell(form(sum(values)) if values else MISSING, mean))
        if any(cell.small for cell in cells):
            rows.append((arm.name, arm.label, cells))
    return [metric.title for metric in metrics], rows


def _whole(value: float) -> str:
    return show(round(value))


def failures(study: StudyRecord) -> list[dict[str, str]]:
    return _entries(study, "failures", ("cell", "stage", "error", "next", "log", "task", "arm"))


def changed_inputs(study: StudyRecord) -> list[str]:
    """A sentence for each file that finished runs were made with and that is another now."""
    return [f"{entry['sentence']}." for entry in _entries(study, "changed_inputs", ("sentence",)) if entry["sentence"]]


def _entries(study: StudyRecord, name: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """What about.json lists under a name; nothing of another shape."""
    listed = study.about.get(name)
    return [
        {key: str(entry.get(key) or "") for key in keys}
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict)
    ]
