"""Everything that tdpo writes into a run directory, by name: what `--overwrite` clears, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import RECIPE_FILE
from .checkpoints import is_checkpoint

STATUS_FILE = "status.json"
LOCK_FILE = ".lock"
# There while a run is begun: until it is gone, the folder is none, and may be begun anew.
BEGINNING = ".run-being-begun"
MODEL, STAGED_MODEL = "model", ".model-being-saved"
FILES = (
    RECIPE_FILE, "environment.json", STATUS_FILE, "data.json", "metrics.jsonl", "completions.jsonl", "evaluation.json",
    "samples.jsonl", "base_samples.json", "report.html",
)  # fmt: skip
FOLDERS = (MODEL, STAGED_MODEL)
LEFT_OVER = ("metrics.tmp",)  # of earlier versions
TENSORBOARD = "runs"  # where transformers lets TensorBoard write, with report_to: [tensorboard]
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")  # as `write_text` names what it has not finished


def is_ours(entry: Path) -> bool:
    """Whether `entry`, directly inside a run directory, was written by tdpo. The lock is held, and no content."""
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
