"""Checkpoint folders: `checkpoint-<step>`, whole once they hold the file COMPLETE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .files import now, write_text

COMPLETE = "COMPLETE"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, by step; incomplete ones were cut off while being written and are never used."""

    complete: list[Path]
    incomplete: list[Path]

    @property
    def newest(self) -> Path | None:
        return self.complete[-1] if self.complete else None


def is_checkpoint(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def checkpoint_step(checkpoint: Path) -> int:
    """The number of updates that a checkpoint folder holds, by its name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match[1])


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole. Call it after its last file was written."""
    write_text(checkpoint / COMPLETE, f"{now()}\n")


def find_checkpoints(folder: Path) -> Checkpoints:
    """All checkpoints directly inside `folder`."""
    found = sorted(
        (p for p in folder.glob("checkpoint-*") if p.is_dir() and is_checkpoint(p.name)), key=checkpoint_step
    )
    return Checkpoints(
        complete=[p for p in found if (p / COMPLETE).exists()],
        incomplete=[p for p in found if not (p / COMPLETE).exists()],
    )
