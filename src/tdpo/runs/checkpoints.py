"""Checkpoint folders, `checkpoint-<step>`. One is whole once it holds the file COMPLETE, which lists its files."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..records.files import now, sync_folder, write_text
from ..records.folders import remove, sync_tree
from ..records.json_files import read_json

COMPLETE = "COMPLETE"
TRAINER_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class DamagedCheckpoint(ValueError):
    """A checkpoint that was written whole and of which a file is now missing, cut short or unreadable."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run by step. Incomplete ones were interrupted while they were written and are never used."""

    complete: list[Path]
    incomplete: list[Path]

    @property
    def newest(self) -> Path | None:
        return self.complete[-1] if self.complete else None


def is_checkpoint(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def checkpoint_step(checkpoint: Path) -> int:
    """The number of updates after which a checkpoint was written, by the name of its folder."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match[1])


def mark_complete(checkpoint: Path) -> None:
    """Declare a checkpoint whole, once all its files are on disk. Call it after the last one was written."""
    sync_tree(checkpoint)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
    write_text(checkpoint / COMPLETE, json.dumps({"written": now(), "bytes": sizes}, indent=1) + "\n")
    sync_folder(checkpoint)
    sync_folder(checkpoint.parent)


def unmark(checkpoint: Path) -> None:
    """Declare a checkpoint incomplete: no run resumes from it any more."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    sync_folder(checkpoint)


def find_checkpoints(folder: Path) -> Checkpoints:
    """All checkpoints directly inside `folder`."""
    folders = sorted(
        (p for p in folder.glob("checkpoint-*") if p.is_dir() and is_checkpoint(p.name)), key=checkpoint_step
    )
    return Checkpoints(
        complete=[p for p in folders if (p / COMPLETE).exists()],
        incomplete=[p for p in folders if not (p / COMPLETE).exists()],
    )


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that was whole once, naming the file; None if nothing can be seen.

    Sizes are those that the mark recorded; and each file must have the outer form of its kind, whose end is where a
    cut shows. (Marks of earlier versions recorded no sizes.)
    """
    for name, size in _recorded_sizes(checkpoint).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, and {size:,} were written"
    if not (checkpoint / TRAINER_STATE).is_file() and _is_of_transformers(checkpoint):
        return f"{TRAINER_STATE} is missing"
    for path in _files(checkpoint):
        if reason := _misformed(path):
            return f"{path.relative_to(checkpoint).as_posix()} {reason}"
    return None


def require_whole(checkpoint: Path) -> None:
    """Raise `DamagedCheckpoint` where `damage_of` finds something; it names the newest older one that is whole."""
    if damage := damage_of(checkpoint):
        raise DamagedCheckpoint(f"{checkpoint} is damaged: {damage}. {what_else(checkpoint)}")


def what_else(damaged: Path) -> str:
    """A sentence that says which checkpoint can be used instead of a damaged one."""
    older = newest_whole(damaged.parent, before=checkpoint_step(damaged)) if is_checkpoint(damaged.name) else None
    if older is None:
        return "No older checkpoint beside it is whole: restore the file from a copy, or start the run anew"
    return f"{older.name} beside it is whole: `--resume --last-good` goes on from there"


def newest_whole(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete checkpoint without damage; only of steps below `before` where that is not None."""
    for checkpoint in reversed(find_checkpoints(folder).complete):
        if (before is None or checkpoint_step(checkpoint) < before) and damage_of(checkpoint) is None:
            return checkpoint
    return None


def rotate_checkpoints(folder: Path, limit: int | None, newest: int, keep: Path | None = None) -> None:
    """Delete all but `limit` complete checkpoints, those of the lowest steps first, and all incomplete ones.

    The checkpoint of step `newest`, which was just written, always stays, and so does `keep`. Checkpoints of later
    steps belong to a course that was abandoned (the run was resumed before them) and are deleted first.
    """
    if limit is None or limit <= 0:
        return
    checkpoints = find_checkpoints(folder)
    for checkpoint in checkpoints.incomplete:
        remove(checkpoint)
    oldest_first = sorted(
        checkpoints.complete, key=lambda path: (checkpoint_step(path) <= newest, checkpoint_step(path))
    )
    staying_steps = {newest} | ({checkpoint_step(keep)} if keep is not None and is_checkpoint(keep.name) else set())
    spare = [path for path in oldest_first if checkpoint_step(path) not in staying_steps]
    for checkpoint in spare[: max(0, len(oldest_first) - max(limit, len(staying_steps)))]:
        remove(checkpoint)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)


def _recorded_sizes(checkpoint: Path) -> dict[str, int]:
    try:
        sizes = read_json(checkpoint / COMPLETE)["bytes"]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _is_of_transformers(checkpoint: Path) -> bool:
    return any(checkpoint.glob("*.safetensors")) or any(checkpoint.glob("*.pt"))


def _misformed(path: Path) -> str | None:
    """What is wrong with the outer form of a file, by its suffix; None if nothing is, or the suffix says nothing."""
    size = path.stat().st_size
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return "is empty" if not size else "is not JSON"
    elif path.suffix == ".safetensors":
        return _misformed_safetensors(path, size)
    elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
        return "is empty" if not size else "is cut short, or was not written by torch.save"
    return None


def _misformed_safetensors(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if size > 8 and length <= size - 8 else {}
        except ValueError:
            header = {}
    if not isinstance(header, dict) or not header:
        return "is empty" if not size else "is cut short, or is no safetensors file"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size:,} bytes, and its header says {expected:,}"
