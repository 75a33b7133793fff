"""The responses of base and trained models, side by side for every prompt, as data for the page's browser."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .embedding import embed_json
from .numbers import number
from .results import BASE_COLOR, evaluated_columns, reward_name
from .run import Run

SAMPLE_BYTES = 1_800_000  # of the report's 8 MB, of which Plotly takes 4.8
TEXT_CHARACTERS = 6_000


@dataclass(frozen=True)
class Samples:
    """`payload` is what the page's script reads; `shown` of `total` prompts fit into the file."""

    payload: dict[str, Any]
    shown: int
    total: int
    rewards: list[tuple[str, int, list[float]]]

    @property
    def judged(self) -> bool:
        """Whether any response has a reward."""
        return any(values for _, _, values in self.rewards)


@dataclass(frozen=True)
class _Source:
    label: str
    color: int
    run: Run
    model: str


def collect_samples(runs: list[Run], *, max_bytes: int = SAMPLE_BYTES) -> Samples | None:
    """One column for each base model and run; None without any sample. Prompts beyond `max_bytes` are left out."""
    sources = _sources(runs)
    if not sources:
        return None
    prompts: dict[str, dict[str, Any]] = {}
    rewards: list[tuple[str, int, list[float]]] = []
    for position, source in enumerate(sources):
        of_source: list[float] = []
        for sample in _in_order(source):
            value = number(sample.get("reward"))
            of_source.extend([] if value is None else [value])
            _place(prompts, sample, position, len(sources), value)
        rewards.append((source.label, source.color, of_source))
    shown_prompts: list[dict[str, Any]] = []
    size = 0
    for entry in prompts.values():
        size += len(embed_json(entry))
        if shown_prompts and size > max_bytes:
            break
        shown_prompts.append(entry)
    values = [value for _, _, of_source in rewards for value in of_source]
    payload = {
        "columns": [
            {"label": source.label, "color": source.color, "judged": bool(of_source)}
            for source, (_, _, of_source) in zip(sources, rewards, strict=True)
        ],
        "prompts": shown_prompts,
        "reward": reward_name(runs),
        "scale": _scale(values),
    }
    return Samples(payload, len(shown_prompts), len(prompts), rewards)


def _sources(runs: list[Run]) -> list[_Source]:
    """Base columns as in the results; a run with samples but without an evaluation brings a base of its own."""
    sources: list[_Source] = []
    for column in evaluated_columns(runs):
        sources.append(_Source(column.label, column.color, column.run, "base" if column.is_base else "trained"))
    paths = {source.run.path for source in sources}
    for run in runs:
        if run.path not in paths:
            base = "Base" if len(runs) == 1 else f"Base of {run.label}"
            sources += [_Source(base, BASE_COLOR, run, "base"), _Source(run.label, run.index, run, "trained")]
    return [s for s in sources if any(sample.get("model") == s.model for sample in s.run.samples)]


def _place(
    prompts: dict[str, dict[str, Any]],
    sample: dict[str, Any],
    position: int,
    width: int,
    reward: float | None,
) -> None:
    text = _text(sample.get("prompt"))
    key = json.dumps([sample.get("prompt_id"), text], default=str)
    entry = prompts.setdefault(
        key, {"id": _text(sample.get("prompt_id")), "prompt": text, "cells": [[] for _ in range(width)]}
    )
    entry["cells"][position].append(
        {
            "text": _text(sample.get("text")),
            "reward": reward,
            "tokens": number(sample.get("tokens")),
            "cut": sample.get("finished") is False,
            "kl": None if sample.get("model") == "base" else number(sample.get("reverse_kl")),
        }
    )


def _in_order(source: _Source) -> list[dict[str, Any]]:
    """The source's samples by sample index, so that rows pair what was drawn with the same seed."""
    own = [sample for sample in source.run.samples if sample.get("model") == source.model]
    return sorted(own, key=lambda sample: number(sample.get("sample_index")) or 0)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
    more = len(text) - TEXT_CHARACTERS
    return f"{text[:TEXT_CHARACTERS]} … ({more} more characters in samples.jsonl)" if more > 0 else text


def _scale(rewards: list[float]) -> dict[str, float]:
    """Where the colours of rewards turn and end: at zero if there are rewards on both sides, else at the middle."""
    if not rewards:
        return {"centre": 0.0, "span": 1.0}
    low, high = min(rewards), max(rewards)
    centre = 0.0 if low < 0 < high else (low + high) / 2
    return {"centre": centre, "span": max(high - centre, centre - low) or 1.0}
