"""How the claims of a study are judged: by rules that `docs/the_study.md` fixed before any study had run.

What is asked stands in the study (`claims`). Each question gets one number with its 95 % interval, the mean over tasks
of a comparison between two arms, signed so that positive speaks for the claim. The primary questions decide, the others
are shown beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bootstrap import CONFIDENCE, LEAST_UNITS
from ..config import Claim, built_in_claims
from ..methods import ARMS
from ..records.study_tables import CellKey
from .cell_statistics import RESAMPLES, SEED, VARIANCE, Draws, TaskResamples, interval, same_but_for_the_seed
from .frontiers import KLS, arm_frontier, gap
from .prompt_table import PromptTable
from .questions import Question, questions_of

PRIMARY_DIVERSITY = "embedding_diversity"
LEAST_RATIO = 1e-3  # of variances: a cell without any variance would otherwise decide alone, with −infinity


@dataclass
class Answer:
    """The answer to a question: estimate, interval, verdict, the tasks that could not be used, with the reason, and
    those with too few prompts for an interval."""

    question: Question
    value: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "undecided"
    tasks: list[dict[str, Any]] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    few_prompts: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        question = self.question
        text = question.text if self.value is not None else f"{question.text}: {'; '.join(self.without)}"
        return {
            "text": text, "primary": question.primary,
            "metric": question.metric, "matched": question.matched, "unit": question.unit,
            "value": self.value, "low": self.low, "high": self.high, "verdict": self.verdict, "tasks": self.tasks,
        }  # fmt: skip


def judge_claims(
    table: PromptTable,
    planned: Iterable[CellKey] | None = None,
    *,
    claims: Sequence[Claim] | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """The content of `claims.json`.

    `planned` are the cells that the study was to have, so that missing ones are named; `claims` are the study's own,
    None for the built-in ones.
    """
    draws = [TaskResamples(table, task, resamples=resamples, seed=seed) for task in table.tasks()]
    missing = sorted(set(planned or ()) - set(table.cells))
    arms = {cell.arm for cell in (*table.cells, *missing)}
    verdicts = []
    for number, claim in enumerate(built_in_claims() if claims is None else claims, start=1):
        questions = questions_of(claim, arms)
        answers = [answer(draws, question) for question in questions]
        used = {arm for question in questions if question.primary for arm in (question.first, question.second)}
        verdict, why = judge(answers, [cell for cell in missing if cell.arm in used | {"reference"}])
        if missing:
            why = f"Provisional: {len(table.cells)} of {len(table.cells) + len(missing)} runs are there. {why}"
        parts = [part.as_json() for part in answers]
        verdicts.append({"id": str(number), "text": claim.text, "verdict": verdict, "why": why, "parts": parts})
    settings = {"schema": 1, "confidence": CONFIDENCE, "resamples": resamples, "primary_diversity": PRIMARY_DIVERSITY}
    return {**settings, "missing_cells": len(missing), "claims": verdicts}


def answer(tasks: Sequence[TaskResamples], question: Question) -> Answer:
    """Answer a question by the mean over the tasks that allow the comparison; `without` names the others."""
    result, numbers = Answer(question), []
    with_metrics = [draws for draws in tasks if all(draws.table.measured(draws.task, m) for m in _needed(question))]
    if not with_metrics:
        result.without.append(f"no task measures {_words(' and '.join(_needed(question)))}")
    for draws in with_metrics:
        on_task = _on_task(draws, question)
        if isinstance(on_task, str):
            result.without.append(f"{draws.task}: {on_task}")
            continue
        number, span = on_task
        low, high = draws.interval(number)
        result.tasks.append({"task": draws.task, "value": float(number[0]), "low": low, "high": high, "range": span})
        numbers.append(number)
        if not draws.allows_intervals:
            result.few_prompts.append(draws.task)
    if numbers:
        mean = np.mean(numbers, axis=0)
        result.value = float(mean[0])
        result.low, result.high = (None, None) if result.few_prompts else interval(mean)
        result.verdict = verdict_of(result.low, result.high, question.supports_above)
    return result


def _words(metrics: str) -> str:
    """Names of metrics in words."""
    return metrics.replace("_kl", " KL").replace("reward_mean", "reward").replace("_", " ")


def _needed(question: Question) -> list[str]:
    """Metrics of prompts that a task must have for this question."""
    return [
        "reward_square" if metric == VARIANCE else metric for metric in (question.metric, question.matched) if metric
    ]


def verdict_of(low: float | None, high: float | None, supports_above: float = 0.0) -> str:
    """Contradicted if the whole interval lies below 0, supported if it lies above `supports_above`, else undecided."""
    if low is None or high is None:
        return "undecided"
    if high < 0:
        return "contradicted"
    return "supported" if low > supports_above else "undecided"


def _on_task(draws: TaskResamples, question: Question) -> tuple[Draws, list[float] | None] | str:
    """(the number, signed so that positive speaks for the claim, `[1 + R]`; the common range), or why there is none."""
    seeds = {cell.seed for cell in draws.table.of(draws.task, "reference")}
    if not seeds:
        return f"no cell of {ARMS['reference'].label}"
    for arm in (question.first, question.second):
        own = {cell.seed for cell in draws.table.of(draws.task, arm)}
        if not own:
            return f"no cell of {ARMS[arm].label}"
        seeds &= own
    if not seeds:
        return "no seed that both arms and the reference have"
    seeds_of_all = sorted(seeds)
    result = (
        _log_ratio(draws, question, seeds_of_all) if question.matched is None else _gap(draws, question, seeds_of_all)
    )
    if isinstance(result, str):
        return result
    number, span = result
    return (-number if question.negative else number), span


def _gap(draws: TaskResamples, question: Question, seeds: list[int]) -> tuple[Draws, list[float] | None] | str:
    assert question.matched is not None
    frontiers = []
    for arm in (question.first, question.second):
        frontier = arm_frontier(
            draws, arm, question.matched, question.metric, seeds, reference=not question.trained_only
        )
        if frontier is None:
            metrics = _words(f"{question.metric} or {question.matched}")
            return f"{metrics} not measured for {ARMS[arm].label} or the reference"
        frontiers.append(frontier)
    difference = gap(*frontiers)
    if np.isnan(difference.mean[0]):
        return f"no common range of {_words(question.matched)}"
    scale = _scale(draws, question.scale, seeds)
    if scale == 0:
        return "the reference's reward does not vary, or was not measured"
    power = 2 if question.matched in KLS else 1  # frontiers have the root of a KL
    return difference.mean / scale, [float(difference.low[0] ** power), float(difference.high[0] ** power)]


def _scale(draws: TaskResamples, name: str, seeds: list[int]) -> float:
    """The number by which a task's numbers are divided, so that tasks with different rewards can be averaged. It is the
    estimate, the same for all resamples."""
    if not name:
        return 1.0
    variance = draws.over_seeds(draws.table.of(draws.task, "reference"), VARIANCE, seeds)
    value = 0.0 if variance is None else float(variance[0])
    return math.sqrt(value) if name == "reference_sd" else value


def _log_ratio(draws: TaskResamples, question: Question, seeds: list[int]) -> tuple[Draws, None] | str:
    """Mean over strengths of ln(variance of first / variance of second), variances being means over seeds."""
    start = draws.over_seeds(draws.table.of(draws.task, question.second), VARIANCE, seeds)
    if start is None or start[0] == 0:
        return "the reference's reward does not vary"
    logs = []
    for group in same_but_for_the_seed(draws.table.of(draws.task, question.first)):
        variance = draws.over_seeds(group, VARIANCE, seeds)
        if variance is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(start > 0, variance / start, np.nan)
            logs.append(np.log(np.maximum(ratio, LEAST_RATIO)))
    if not logs:
        return f"{_words(question.metric)} not measured for {ARMS[question.first].label}"
    # A strength whose only seed was not drawn is left out of that resample.
    is_defined = ~np.isnan(logs)
    count = is_defined.sum(axis=0)
    total = np.where(is_defined, logs, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0), None


def judge(answers: Sequence[Answer], missing: Sequence[CellKey] = ()) -> tuple[str, str]:
    """The claim's verdict and why: supported if all primary parts are, contradicted if any is, else undecided."""
    primary = [result for result in answers if result.question.primary]
    by = {v: [a for a in primary if a.verdict == v] for v in ("supported", "contradicted", "undecided")}
    if by["contradicted"]:
        verdict = "contradicted"
    else:
        verdict = "supported" if len(by["supported"]) == len(primary) else "undecided"
    return verdict, " ".join([_sentence(verdict, by, len(primary)), *_remarks(answers, missing)])


def _sentence(verdict: str, by: dict[str, list[Answer]], total: int) -> str:
    agree, against, open_ = (len(by[v]) for v in ("supported", "contradicted", "undecided"))
    if verdict == "supported":
        return f"All {total} comparisons agree with the claim, each with its whole 95 % interval."
    if verdict == "contradicted":
        questions = "; ".join(result.question.text for result in by["contradicted"])
        return (
            f"{against} of {total} comparisons point the other way with the whole 95 % interval ({questions}); "
            f"{agree} agree with the claim and {open_} {'is' if open_ == 1 else 'are'} open."
        )
    impossible = sum(result.value is None for result in by["undecided"])
    reasons = [f"the 95 % interval of {open_ - impossible} does not settle it"] if open_ > impossible else []
    reasons += [f"{impossible} could not be made"] if impossible else []
    return f"{agree} of {total} comparisons agree with the claim and none contradicts it, but {' and '.join(reasons)}."


def _remarks(answers: Sequence[Answer], missing: Sequence[CellKey]) -> list[str]:
    remarks = []
    others = [result for result in answers if not result.question.primary and result.value is not None]
    against = sum(result.verdict == "contradicted" for result in others)
    if against:
        remarks.append(f"Of {len(others)} secondary comparisons, which do not count, {against} point the other way.")
    without = list(dict.fromkeys(reason for result in answers if result.question.primary for reason in result.without))
    if without:
        remarks.append(f"Left out: {_few(without)}.")
    primary = [result for result in answers if result.question.primary]
    few_prompts = {task for result in primary for task in result.few_prompts}
    if few_prompts:
        remarks.append(
            f"Without an interval, and so without a verdict, as fewer than {LEAST_UNITS} prompts cannot give one: "
            f"{_few(sorted(few_prompts))}."
        )
    unsure = {task["task"] for result in primary for task in result.tasks if task["low"] is None} - few_prompts
    if unsure:
        remarks.append(f"Without an interval, as many resamples have no common range: {_few(sorted(unsure))}.")
    if missing:
        remarks.append(f"Missing cells: {_few([str(cell) for cell in missing])}.")
    return remarks


def _few(items: list[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
