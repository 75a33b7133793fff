"""The seconds of training: what counts, and that console and report say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdpo.cli._training import _time_taken
from tdpo.records.run_times import cache_seconds, training_seconds
from tdpo.report.numbers import show_duration
from tdpo.report.run import Run
from tdpo.report.run_facts import provenance_table

# A run that was stopped after its first call, and went on.
LINES = [
    {"step": 1, "split": "train", "time_s": 4.0},
    {"step": 1, "split": "eval", "time_s": 5.0},
    {"step": 1, "split": "summary", "time_s": 5.5, "train_runtime": 5.5, "reference_cache_seconds": 12.0},
    {"step": 2, "split": "train", "time_s": 9.0},
    {"step": 2, "split": "summary", "time_s": 31.0, "train_runtime": 25.5, "reference_cache_seconds": 0.0},
    {"step": 2, "split": "eval", "time_s": 40.0},  # judged at the end
]


def test_training_ends_with_its_summary_and_the_cache_is_counted_once() -> None:
    assert training_seconds(LINES) == 31.0 and cache_seconds(LINES) == 12.0
    assert training_seconds(LINES[:1]) == 4.0 and cache_seconds(LINES[:2]) is None
    assert training_seconds([]) is None and training_seconds([{"step": 1, "time_s": None}, {"time_s": True}]) is None
    assert cache_seconds(LINES[4:]) == 0.0, "made by an earlier run"


@pytest.mark.parametrize(
    ("lines", "cache"), [(LINES, "made before training in 12 s"), (LINES[4:], "made by an earlier run")]
)
def test_console_and_report_agree(lines: list[dict[str, object]], cache: str) -> None:
    run = Run(Path("r"), "DPO", 0, metrics=lines)
    facts = {row.title: row.cells[0].text for row in provenance_table([run]).rows}
    assert (facts["Training time"], facts["Reference cache"]) == (show_duration(31.0), cache)
    said = _time_taken({"seconds": training_seconds(lines), "cache_seconds": cache_seconds(lines)}, 52.0)
    assert said.startswith("trained in 31.0 s") and "(52.0 s with loading, judging and saving)" in said
    assert ("after 12.0 s for the reference cache" in said) == cache.startswith("made before")
