"""Everything that tdpo writes into a run directory, by name: what `--overwrite` clears, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from ..records.names import (
    ADAPTERS_FOLDER,
    ANSWERS_FILE,
    BASE_SAMPLES_FILE,
    COMPLETIONS_FILE,
    DATA_FILE,
    EVALUATION_FILE,
    MACHINE_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    RECIPE_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    STATUS_FILE,
    TRACKERS_FILE,
)
from .checkpoints import is_checkpoint

# This file is there while a run directory is set up. As long as it is, the folder is no run and may be set up again.
BEGINNING = ".run-being-begun"
STAGED_MODEL = ".model-being-saved"
BEING_MOVED = ".run-being-moved"  # the old run, while it is moved aside or back
FILES = (
    RECIPE_FILE, MACHINE_FILE, STATUS_FILE, DATA_FILE, METRICS_FILE, COMPLETIONS_FILE, EVALUATION_FILE, SAMPLES_FILE,
    BASE_SAMPLES_FILE, ANSWERS_FILE, REPORT_FILE, TRACKERS_FILE,
)  # fmt: skip
FOLDERS = (MODEL_FOLDER, STAGED_MODEL, ADAPTERS_FOLDER)
LEFT_OVER = ("metrics.tmp",)  # of earlier versions
TENSORBOARD = "runs"  # where transformers lets TensorBoard write, with report_to: [tensorboard]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")  # how `write_bytes` names a file that is not finished


def is_ours(entry: Path) -> bool:
    """Whether `entry`, directly inside a run directory, was written by tdpo. The lock file is no content."""
    name = entry.name
    if name in (*FILES, *FOLDERS, *LEFT_OVER) or is_checkpoint(name):
        return True
    unfinished = _TEMPORARY.fullmatch(name)
    if unfinished is not None and unfinished["name"] in FILES:
        return True
    return name == TENSORBOARD and not entry.is_symlink() and entry.is_dir() and _holds_only_events(entry)


def _holds_only_events(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return bool(files) and all(path.name.startswith("events.out.tfevents") for path in files)
