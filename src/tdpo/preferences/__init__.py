"""Preferences: which files are read, how every row is checked, and what a sound row is.

`load_preferences` reads a file, a saved dataset or a hub dataset; `preferences_from_dataset` takes rows that are
already in memory. Both give `Preferences`, or say which rows are broken and why (docs/preference_formats.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdpo.preferences.prompts import split_prompt
from tdpo.preferences.readers import read_dataset, read_source
from tdpo.preferences.reasons import Reason
from tdpo.preferences.rows import (
    BadPreferences,
    Message,
    PreferenceRow,
    Preferences,
    RowProblem,
    Text,
    UnreadablePreferences,
)
from tdpo.preferences.validation import OnBadRows, validate
from tdpo.preferences.writing import write_preferences


def load_preferences(source: str | Path, *, split: str = "train", on_bad_rows: OnBadRows = "error") -> Preferences:
    """Read and check all rows of `source`.

    `source` is a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file (the text formats also with .gz), a folder that
    `datasets` saved, or a hub dataset (`owner/name` or `owner/name:configuration`). `split` counts for a saved
    `DatasetDict` and for the hub. Raises FileNotFoundError, UnreadablePreferences (the source as a whole), and
    BadPreferences (its rows; with `on_bad_rows="skip"` only if none is left).
    """
    return validate(read_source(source, split), str(source), on_bad_rows)


def preferences_from_dataset(dataset: Any, *, source: str = "dataset", on_bad_rows: OnBadRows = "error") -> Preferences:
    """The same for a `datasets.Dataset` or any iterable of mappings; `source` names it in problems."""
    return validate(read_dataset(dataset, source), source, on_bad_rows)


__all__ = [
    "BadPreferences",
    "Message",
    "PreferenceRow",
    "Preferences",
    "Reason",
    "RowProblem",
    "Text",
    "UnreadablePreferences",
    "load_preferences",
    "preferences_from_dataset",
    "split_prompt",
    "write_preferences",
]
