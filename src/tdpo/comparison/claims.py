"""The four claims of the study, judged by rules that `docs/the_study.md` fixed before any study had run.

A claim has parts. A part is one number with its 95 % interval, the mean over tasks of a comparison between two arms,
signed so that positive speaks for the claim. The primary parts decide, the others are shown beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bootstrap import CONFIDENCE
from ..methods import ARMS
from ..records.study_tables import CellKey
from .cell_statistics import RESAMPLES, SEED, VARIANCE, Draws, TaskResamples, interval, same_but_for_the_seed
from .frontiers import KLS, arm_frontier, gap
from .prompt_table import PromptTable

PRIMARY_DIVERSITY = "embedding_diversity"
# What is shown beside it: its unit, and whether less of it is more diverse.
OTHER_DIVERSITY = {
    "ead": ("", False),
    "self_bleu": ("lower", True),
    "vendi": ("effective responses", False),
    "gated_embedding_diversity": ("", False),
}
MATCHED = {
    "reward_mean": "at matched reward",
    "forward_kl": "at matched forward KL",
    "reverse_kl": "at matched reverse KL",
}
NOT_BELOW = math.log(0.9)  # a variance counts as kept if a loss of a tenth or more is excluded
LEAST_RATIO = 1e-3  # of variances: a cell without any variance would otherwise decide alone, with −infinity
OF_SD = "SDs of the reference's reward"


@dataclass(frozen=True)
class Question:
    """A part before it is answered: what `first` has over `second`, a gap of frontiers or a log ratio of variances."""

    first: str
    second: str
    metric: str
    matched: str | None  # None: log ratio of reward variances, averaged over strengths
    primary: bool = True
    unit: str = ""
    negative: bool = False  # the claim says less
    trained_only: bool = False  # without the reference as a point
    scale: str = ""  # "sd" or "variance" of the reference's reward, by which a task's numbers are divided
    supports_above: float = 0.0
    relation: str = "against"

    @property
    def text(self) -> str:
        names = f"{ARMS[self.first].label} {self.relation} {ARMS[self.second].label}"
        how = "averaged over strengths" if self.matched is None else MATCHED[self.matched]
        return f"{names}, {how}{', between trained points only' if self.trained_only else ''}"


@dataclass
class Answer:
    """A question's number: the estimate, the interval, what it says, and what of the study could not enter."""

    question: Question
    value: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "undecided"
    tasks: list[dict[str, Any]] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        asked = self.question
        text = asked.text if self.value is not None else f"{asked.text}: {'; '.join(self.without)}"
        return {
            "text": text, "primary": asked.primary,
            "metric": asked.metric, "matched": asked.matched, "unit": asked.unit,
            "value": self.value, "low": self.low, "high": self.high, "verdict": self.verdict, "tasks": self.tasks,
        }  # fmt: skip


def judge_claims(
    table: PromptTable,
    planned: Iterable[CellKey] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Any]:
    """The content of `claims.json`. `planned`: the cells that the study was to have, so that missing ones are named."""
    draws = [TaskResamples(table, task, resamples=resamples, seed=seed) for task in table.tasks()]
    missing = sorted(set(planned or ()) - set(table.cells))
    arms = {cell.arm for cell in (*table.cells, *missing)}
    claims = []
    for number, (text, questions) in enumerate(the_claims(arms), start=1):
        answers = [answer(draws, question) for question in questions]
        used = {arm for question in questions if question.primary for arm in (question.first, question.second)}
        verdict, why = judge(answers, [cell for cell in missing if cell.arm in used | {"reference"}])
        if missing:
            why = f"Provisional: {len(table.cells)} of {len(table.cells) + len(missing)} runs are there. {why}"
        parts = [found.as_json() for found in answers]
        claims.append({"id": str(number), "text": text, "verdict": verdict, "why": why, "parts": parts})
    settings = {"schema": 1, "confidence": CONFIDENCE, "resamples": resamples, "primary_diversity": PRIMARY_DIVERSITY}
    return {**settings, "missing_cells": len(missing), "claims": claims}


def the_claims(arms: set[str]) -> list[tuple[str, list[Question]]]:
    """The claims with their questions; `arms` are the study's, since PPO with the exact reverse KL enters if there."""
    return [
        (
            "At matched reward and at matched KL, TDPO2's outputs are more diverse than PPO's and than DPO's.",
            _diversity(),
        ),
        ("PPO's reward variance is below the starting model's; TDPO2's is not.", _variance()),
        ("TDPO2's frontier of reward against KL lies above DPO's.", _reward_per_kl()),
        ("PPO held by the forward KL keeps more modes than PPO held by the reverse KL.", _modes(arms)),
    ]


def _diversity() -> list[Question]:
    against = [(other, matched) for other in ("ppo_reverse", "dpo") for matched in MATCHED]
    primary = [Question("tdpo2", other, PRIMARY_DIVERSITY, matched) for other, matched in against]
    others = [
        Question("tdpo2", other, metric, matched, primary=False, unit=unit, negative=negative)
        for metric, (unit, negative) in OTHER_DIVERSITY.items()
        for other, matched in against
    ]
    return [*primary, *_trained_only(primary), *others]


def _variance() -> list[Question]:
    return [
        Question(
            "ppo_reverse", "reference", VARIANCE, None,
            unit="ln(reference's variance / PPO's)", negative=True, relation="below",
        ),
        Question(
            "tdpo2", "reference", VARIANCE, None,
            unit="ln(TDPO2's variance / reference's)", supports_above=NOT_BELOW, relation="not below",
        ),
        Question(
            "tdpo2", "ppo_reverse", VARIANCE, "reward_mean",
            primary=False, unit="of the reference's variance", scale="variance",
        ),
    ]  # fmt: skip


def _reward_per_kl() -> list[Question]:
    primary = [
        Question("tdpo2", "dpo", "reward_mean", kl, unit=OF_SD, scale="sd") for kl in ("forward_kl", "reverse_kl")
    ]
    return [*primary, *_trained_only(primary)]


def _modes(arms: set[str]) -> list[Question]:
    exact = ["ppo_reverse_exact"] if "ppo_reverse_exact" in arms else []
    against = [(other, matched) for other in (*exact, "ppo_reverse") for matched in MATCHED]
    share = "share of the known modes"
    primary = [Question("ppo_forward", other, "mode_coverage", matched, unit=share) for other, matched in against]
    entropy = [
        Question("ppo_forward", other, "mode_entropy", matched, primary=False, unit="effective modes")
        for other, matched in against
    ]
    return [*primary, *_trained_only(primary), *entropy]


def _trained_only(questions: Sequence[Question]) -> list[Question]:
    """The same without the straight line from the reference to an arm's first point, which nobody measured."""
    return [
        Question(
            q.first, q.second, q.metric, q.matched,
            primary=False, unit=q.unit, negative=q.negative, scale=q.scale, trained_only=True,
        )
        for q in questions
    ]  # fmt: skip


def answer(tasks: Sequence[TaskResamples], question: Question) -> Answer:
    """The mean over the tasks that allow the comparison; the others are named in `without`."""
    found, numbers = Answer(question), []
    measured = [draws for draws in tasks if all(draws.table.measured(draws.task, m) for m in _needed(question))]
    if not measured:
        found.without.append(f"no task measures {_words(' and '.join(_needed(question)))}")
    for draws in measured:
        result = _on_task(draws, question)
        if isinstance(result, str):
            found.without.append(f"{draws.task}: {result}")
            continue
        number, span = result
        low, high = interval(number)
        found.tasks.append({"task": draws.task, "value": float(number[0]), "low": low, "high": high, "range": span})
        numbers.append(number)
    if numbers:
        mean = np.mean(numbers, axis=0)
        found.value = float(mean[0])
        found.low, found.high = interval(mean)
        found.verdict = verdict_of(found.low, found.high, question.supports_above)
    return found


def _words(metrics: str) -> str:
    """Names of metrics as a sentence has them."""
    return metrics.replace("_kl", " KL").replace("reward_mean", "reward").replace("_", " ")


def _needed(question: Question) -> list[str]:
    """Metrics of prompts without which a task has nothing to say."""
    return [
        "reward_square" if metric == VARIANCE else metric for metric in (question.metric, question.matched) if metric
    ]


def verdict_of(low: float | None, high: float | None, supports_above: float = 0.0) -> str:
    """Contradicted if the interval lies wholly below 0; else supported if wholly above `supports_above`; else open."""
    if low is None or high is None:
        return "undecided"
    if high < 0:
        return "contradicted"
    return "supported" if low > supports_above else "undecided"


def _on_task(draws: TaskResamples, question: Question) -> tuple[Draws, list[float] | None] | str:
    """(what speaks for the claim [1 + R], the common range), or why there is none."""
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
    matched = sorted(seeds)
    result = _log_ratio(draws, question, matched) if question.matched is None else _gap(draws, question, matched)
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
    """What a task's numbers are divided by, to average tasks with different rewards: the estimate, in all resamples."""
    if not name:
        return 1.0
    variance = draws.over_seeds(draws.table.of(draws.task, "reference"), VARIANCE, seeds)
    value = 0.0 if variance is None else float(variance[0])
    return math.sqrt(value) if name == "sd" else value


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
    known = ~np.isnan(logs)
    count = known.sum(axis=0)
    total = np.where(known, logs, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0), None


def judge(answers: Sequence[Answer], missing: Sequence[CellKey] = ()) -> tuple[str, str]:
    """The claim's verdict and why: supported if all primary parts are, contradicted if any is, else undecided."""
    primary = [found for found in answers if found.question.primary]
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
        named = "; ".join(found.question.text for found in by["contradicted"])
        return (
            f"{against} of {total} comparisons point the other way with the whole 95 % interval ({named}); "
            f"{agree} agree with the claim and {open_} {'is' if open_ == 1 else 'are'} open."
        )
    impossible = sum(found.value is None for found in by["undecided"])
    reasons = [f"the 95 % interval of {open_ - impossible} does not settle it"] if open_ > impossible else []
    reasons += [f"{impossible} could not be made"] if impossible else []
    return f"{agree} of {total} comparisons agree with the claim and none contradicts it, but {' and '.join(reasons)}."


def _remarks(answers: Sequence[Answer], missing: Sequence[CellKey]) -> list[str]:
    remarks = []
    others = [found for found in answers if not found.question.primary and found.value is not None]
    against = sum(found.verdict == "contradicted" for found in others)
    if against:
        remarks.append(f"Of {len(others)} secondary comparisons, which do not count, {against} point the other way.")
    without = list(dict.fromkeys(reason for found in answers if found.question.primary for reason in found.without))
    if without:
        remarks.append(f"Left out: {_few(without)}.")
    unsure = {
        task["task"] for found in answers if found.question.primary for task in found.tasks if task["low"] is None
    }
    if unsure:
        remarks.append(f"Without an interval, as many resamples have no common range: {_few(sorted(unsure))}.")
    if missing:
        remarks.append(f"Missing cells: {_few([str(cell) for cell in missing])}.")
    return remarks


def _few(items: list[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
