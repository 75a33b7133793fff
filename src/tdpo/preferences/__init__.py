"""Reading and checking of preference rows: a prompt with a chosen and a rejected response.

`load_preferences` reads a file, a saved dataset or a hub dataset. `preferences_from_dataset` takes rows that are
already in memory. Both return `Preferences`, or raise an error that names the broken rows and what is wrong with them
(docs/preference_formats.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdpo.preferences.prompt_splitting import split_prompt
from tdpo.preferences.readers import read_dataset, read_source
from tdpo.preferences.reasons import Reason
from tdpo.preferences.row_writing import write_preferences
from tdpo.preferences.rows import (
    BadPreferences,
    Message,
    PreferenceRow,
    Preferences,
    RowProblem,
    Text,
    UnreadablePreferences,
    read_for,
)
from tdpo.preferences.validation import OnBadRows, RepeatedRows, count_repeated, validate


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    on_bad_rows: OnBadRows = "error",
    repeated_rows: RepeatedRows = "refuse",
) -> Preferences:
    """Read and check all rows of `source`.

    `source` is a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file (the text formats also with .gz), a folder that
    `datasets` saved, or a hub dataset (`owner/name` or `owner/name:configuration`). `split` selects a split of a saved
    `DatasetDict` or of a hub dataset; other sources ignore it. A row that repeats an earlier one is broken, unless
    `repeated_rows` is "keep": then it counts as often as it occurs.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UnreadablePreferences: the source as a whole cannot be read as preferences.
        BadPreferences: rows are broken. With `on_bad_rows="skip"` it is raised only if no usable row is left.
    """
    return validate(read_source(source, split), str(source), on_bad_rows, repeated_rows)


def preferences_from_dataset(
    dataset: Any,
    *,
    source: str = "dataset",
    on_bad_rows: OnBadRows = "error",
    repeated_rows: RepeatedRows = "refuse",
) -> Preferences:
    """Check the rows of a `datasets.Dataset`, or of any iterable of mappings, as `load_preferences` does.

    `source` is the name that error messages give to the rows. Raises what `load_preferences` raises.
    """
    return validate(read_dataset(dataset, source), source, on_bad_rows, repeated_rows)


__all__ = [
    "BadPreferences",
    "Message",
    "PreferenceRow",
    "Preferences",
    "Reason",
    "RowProblem",
    "Text",
    "UnreadablePreferences",
    "count_repeated",
    "load_preferences",
    "preferences_from_dataset",
    "read_for",
    "split_prompt",
    "write_preferences",
]
