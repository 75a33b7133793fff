"""How long a run trained, by its metrics.jsonl: the one rule for console, demo and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Lines = Iterable[Mapping[str, Any]]


def training_seconds(lines: Lines) -> float | None:
    """Seconds of updates with the evaluations and checkpoints between them, over all calls of a resumed run.

    Loading, a reference cache made before the first update and the evaluation after the last are not in it. None where
    nothing was logged.
    """
    logged = (_seconds(line, "time_s") for line in lines if line.get("split", "train") in ("train", "summary"))
    return max((seconds for seconds in logged if seconds is not None), default=None)


def cache_seconds(lines: Lines) -> float | None:
    """Seconds that a run spent on its reference cache: 0 where an earlier run had made it. None without a cache."""
    logged = [_seconds(line, "reference_cache_seconds") for line in lines if line.get("split") == "summary"]
    numbers = [seconds for seconds in logged if seconds is not None]
    return sum(numbers) if numbers else None


def _seconds(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else None  # type: ignore[operator, arg-type]
