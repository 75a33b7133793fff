"""The answers to a study's questions: `questions.json` from the study, the numbers of its cells and their themes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..bootstrap import CONFIDENCE
from ..config import Claim, Contrast, Study, arm_choice
from ..records.study_tables import CellKey
from .answer_words import label, sentence, side_names
from .contrast_meeting import MEETING, kl_at
from .contrast_tables import KLS, ContrastData, contrast_table
from .contrasts import LEVEL, TOST, Answer, answer_all, tasks_of
from .prompt_table import PromptTable
from .two_way import TwoWayMean, two_way_mean


def answers_of(study: Study, table: PromptTable, missing: Sequence[CellKey]) -> dict[str, Any]:
    """The content of `questions.json`; `missing` are the cells that are planned and not there."""
    direction = study.target_direction
    asked = [
        contrast.model_copy(update={"target_kl": f"{direction}_kl"})
        if direction and not contrast.target_kl
        else contrast
        for contrast in study.questions or ()
    ]
    return answers_json(contrast_data(study, table), asked, len(missing))


def claims_of(study: Study) -> Sequence[Claim] | None:
    """The claims to judge: the study's own, the built-in ones (None), or, in a study with questions, none."""
    return () if study.claims is None and study.questions is not None else study.claims


def contrast_data(study: Study, table: PromptTable) -> ContrastData:
    """The study's numbers as contrasts read them."""
    held = frozenset(arm for arm, targets in arm_choice(study.arms).targets.items() if targets)
    return ContrastData(table, held, study.evaluation.samples_per_prompt, table.clusters)


def answers_json(data: ContrastData, contrasts: Sequence[Contrast], missing_cells: int = 0) -> dict[str, Any]:
    """The answers with everything that a reader may ask of them, as plain data."""
    answers = answer_all(data, contrasts)
    questions = [
        {
            **contrast.model_dump(exclude={"plus", "minus", "weights", "at_targets", "tasks", "target_kl"}),
            "held_kl": contrast.held_kl,
            "weights": contrast.weight_of,
            "sides": side_names(contrast),
            "answers": [answer_json(one) for one in answers if one.contrast is contrast],
        }
        for contrast in contrasts
    ]
    return {
        "schema": 1,
        "confidence": CONFIDENCE,
        "level": LEVEL,
        "meeting": MEETING,
        "family": sum(one.contrast.primary for one in answers),
        "missing_cells": missing_cells,
        "questions": questions,
        "points": _points(data, contrasts),
    }


def answer_json(answer: Answer) -> dict[str, Any]:
    """One answer: verdict, sentence and numbers, with None for what is not known."""
    numbers: dict[str, Any] = {"value": None, "low": None, "high": None}
    mean, adjusted = answer.mean, answer.adjusted
    if mean is not None:
        numbers = {
            "value": mean.value,
            **_limits(mean, CONFIDENCE),
            **_limits(mean, TOST, "_90"),
            "error": mean.error,
            "freedom": mean.freedom,
            "p": mean.p_value,
            "p_holm": answer.p_holm,
            "seeds": mean.seeds,
            "themes": mean.themes,
            "prompts": mean.prompts,
            "share": mean.share,
        }
    return {
        "task": answer.task,
        "target": answer.target,
        "verdict": answer.verdict,
        "sentence": sentence(answer),
        "reason": answer.reason,
        **numbers,
        "meeting": None if answer.meeting is None else asdict(answer.meeting),
        "adjusted": None if adjusted is None else {"value": adjusted.value, **_limits(adjusted, CONFIDENCE)},
    }


def _limits(mean: TwoWayMean, confidence: float, suffix: str = "") -> dict[str, float | None]:
    low, high = mean.interval(confidence) or (None, None)
    return {f"low{suffix}": low, f"high{suffix}": high}


def _points(data: ContrastData, contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """Every arm of every question at its targets: the metric with its interval over seeds and themes, the reward and
    both KLs. An arm's point has the prompts for which the arm alone has a value."""
    asked = {
        (contrast.metric, contrast.component, task, arm, target): contrast
        for contrast in contrasts
        for task in tasks_of(data, contrast)
        for arm in contrast.weight_of
        for target in (contrast.at_targets if arm in data.held else (None,))
    }
    points = []
    for (metric, component, task, arm, target), contrast in asked.items():
        cells = data.cells(task, arm, target)
        weights = {(arm, target): np.ones(len(cells))}
        table = contrast_table(data, task, contrast, weights)
        mean = None if isinstance(table, str) or not cells else two_way_mean(table[0], data.themes(task))
        if mean is None:
            continue
        rewards = [value for cell in cells.values() if (value := data.mean_of(cell, "reward_mean")) is not None]
        points.append(
            {
                "task": task,
                "arm": arm,
                "label": label(arm),
                "target": target,
                "metric": metric,
                "component": component,
                "value": mean.value,
                **_limits(mean, CONFIDENCE),
                "share": mean.share,
                "seeds": mean.seeds,
                **{kl: kl_at(data, task, (arm, target), kl, sorted(cells)) for kl in KLS},
                "reward_mean": float(np.mean(rewards)) if rewards else None,
            }
        )
    return points
