"""The responses as data for the page's browser: in columns, compressed, and few enough for the page's size."""

from __future__ import annotations

import base64
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ..embedding import embed_json
from ..numbers import number
from ..samples import TEXT_CHARACTERS
from .frontiers import rounded
from .study_reading import Response, StudyRecord

BEST_KNOWN = ("reference", "dpo", "tdpo2", "ppo_reverse")


def first_columns(study: StudyRecord) -> list[tuple[str, str]]:
    """(name, label) of the methods whose responses stand side by side at first: the best known ones, else the first."""
    known = [(arm.name, arm.label) for arm in study.arms if arm.name in BEST_KNOWN]
    return known if len(known) > 1 else [(arm.name, arm.label) for arm in study.arms[:4]]


@dataclass(frozen=True)
class Samples:
    """`data` is JSON, deflated (zlib), in base64. Of `total` responses `shown` fitted: the first `per_prompt` of each
    cell to each of the first `prompts` prompts of a task; both numbers are None where nothing was left out."""

    data: str
    shown: int
    total: int
    per_prompt: int | None
    prompts: int | None


def collect_samples(study: StudyRecord, max_bytes: int) -> Samples | None:
    """As many responses as fit into `max_bytes`, all methods alike; None where the study has no responses."""
    ranked = _ranked(study)
    if not ranked:
        return None
    deepest = max(rank for _, rank, _ in ranked) + 1
    widest = max(place for _, _, place in ranked) + 1
    per_prompt, prompts = deepest, widest
    while True:
        responses = [r for r, rank, place in ranked if rank < per_prompt and place < prompts]
        data = _packed(_payload(study, responses))
        if len(data) <= max_bytes or (per_prompt == 1 and prompts == 1):
            break
        fits = max_bytes / len(data)
        if per_prompt > 1:
            per_prompt = max(1, min(per_prompt - 1, int(per_prompt * fits * 1.05)))
        else:
            prompts = max(1, min(prompts - 1, int(prompts * fits)))
    return Samples(
        data,
        len(responses),
        len(ranked),
        per_prompt if per_prompt < deepest else None,
        prompts if prompts < widest else None,
    )


def _ranked(study: StudyRecord) -> list[tuple[Response, int, int]]:
    """Responses by task, prompt, method, strength, seed and sample, each with its rank within its cell's prompt and its
    prompt's place within the task. Neighbours are alike, which is what compression needs."""
    cells = {(arm.name, s): i for i, (arm, s) in enumerate(study.cells)}
    tasks = {task.name: task.index for task in study.tasks}
    prompts: dict[str, dict[str, int]] = {name: {} for name in tasks}
    responses = [r for r in study.responses if r.task in tasks and (r.arm, r.strength) in cells]
    for response in responses:
        prompts[response.task].setdefault(response.prompt_id, len(prompts[response.task]))

    def key(r: Response) -> tuple[Any, ...]:
        sample = float(r.sample) if r.sample.isdigit() else 0.0
        return tasks[r.task], prompts[r.task][r.prompt_id], cells[r.arm, r.strength], r.seed, sample

    ranked = []
    rank_of_group: dict[tuple[Any, ...], int] = defaultdict(int)
    for response in sorted(responses, key=key):
        group = key(response)[:4]
        ranked.append((response, rank_of_group[group], prompts[response.task][response.prompt_id]))
        rank_of_group[group] += 1
    return ranked


def _payload(study: StudyRecord, responses: list[Response]) -> dict[str, Any]:
    """Columns with an entry for each response. A text that stood before is the number of the response that had it."""
    cells = {(arm.name, s): i for i, (arm, s) in enumerate(study.cells)}
    tasks = {task.name: task.index for task in study.tasks}
    seeds = sorted({r.seed for r in responses}, key=lambda s: (len(s), s))
    modes = sorted({r.mode for r in responses})
    prompts: dict[tuple[str, str], int] = {}
    prompt_rows: list[list[Any]] = []
    texts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt", "cell", "seed", "text", "reward", "tokens", "cut", "kl", "mode")
    }
    for i, r in enumerate(responses):
        if (r.task, r.prompt_id) not in prompts:
            prompts[r.task, r.prompt_id] = len(prompt_rows)
            prompt_rows.append([tasks[r.task], r.prompt_id, _cut(r.prompt)])
        text = _cut(r.text)
        row = (
            prompts[r.task, r.prompt_id], cells[r.arm, r.strength], seeds.index(r.seed), texts.get(text, text),
            _short(r.reward, 4), _short(r.tokens, 6), int(r.finished is False), _short(r.reverse_kl, 3),
            modes.index(r.mode),
        )  # fmt: skip
        texts.setdefault(text, i)
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    return {
        "cells": [[arm.name, s] for arm, s in study.cells],
        "seeds": seeds,
        "modes": modes,
        "prompts": prompt_rows,
        "scales": [_scale(study, task.name, responses) for task in study.tasks],
        "columns": columns,
    }


def _scale(study: StudyRecord, task: str, responses: list[Response]) -> dict[str, float]:
    """Where the colours of rewards turn and end: at zero if there are rewards on both sides, else at the middle."""
    rewards = [r.reward for r in responses if r.task == task and r.reward is not None]
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 1.0)
    centre = 0.0 if low < 0 < high else (low + high) / 2
    return {"centre": rounded(centre), "span": rounded(max(high - centre, centre - low) or 1.0)}


def _short(value: float | None, digits: int) -> float | int | None:
    finite = number(value)
    if finite is None:
        return None
    short = float(f"{finite:.{digits}g}")
    return int(short) if short == int(short) else short


def _cut(text: str) -> str:
    more = len(text) - TEXT_CHARACTERS
    return f"{text[:TEXT_CHARACTERS]} … ({more} more characters in responses.csv)" if more > 0 else text


def _packed(payload: dict[str, Any]) -> str:
    return base64.b64encode(zlib.compress(embed_json(payload).encode("ascii"), 9)).decode("ascii")
