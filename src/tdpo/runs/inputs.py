"""Digests of what a run is trained with, kept in each checkpoint: with other inputs a resumed run is another run."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from ..records.json_files import read_json, write_json

INPUTS_FILE = "inputs.json"


class ChangedInputs(ValueError):
    """Rows, weights or functions differ from those that a checkpoint was trained with."""

    def __init__(self, checkpoint: Path, changed: Mapping[str, list[str]]) -> None:
        lines = "\n".join(f"  {line}" for line in in_words(changed))
        super().__init__(
            f"{checkpoint} was trained with other inputs than there are now:\n{lines}\n"
            "put them back, start a new run with another run_dir=…, or go on all the same with --accept-changes, which "
            "is recorded in the run"
        )
        self.changed = dict(changed)


def in_words(changed: Mapping[str, list[str]]) -> list[str]:
    return [f"{what}: was {before}, is {now}" for what, (before, now) in changed.items()]


def write_inputs(checkpoint: Path, inputs: Mapping[str, str]) -> None:
    """Record in a checkpoint what it was trained with: a digest or another short text for each input, by its name."""
    write_json(checkpoint / INPUTS_FILE, dict(inputs))


def changed_inputs(checkpoint: Path, inputs: Mapping[str, str]) -> dict[str, list[str]]:
    """The inputs that differ now, each [recorded, now]. Only inputs that stand on both sides are compared."""
    path = checkpoint / INPUTS_FILE
    recorded = read_json(path) if path.exists() else {}
    return {what: [recorded[what], now] for what, now in inputs.items() if what in recorded and recorded[what] != now}


def require_same_inputs(checkpoint: Path, inputs: Mapping[str, str]) -> None:
    """Raise `ChangedInputs`, which names the inputs that differ, if there are any."""
    if changed := changed_inputs(checkpoint, inputs):
        raise ChangedInputs(checkpoint, changed)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_of_function(function: str | None) -> str | None:
    """The file of a function named `file.py:name` or `package.module:name`; None where no file can be found."""
    if function is None:
        return None
    place = function.rpartition(":")[0]
    if place.endswith(".py"):
        return place
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None and spec.has_location else None


def short(digest: str) -> str:
    """The first characters of a digest: enough for a person to compare."""
    return digest[:12]
