"""Which checkpoint a trainer resumes from: one that was written whole."""

from __future__ import annotations

from pathlib import Path

from ..runs.checkpoints import COMPLETE, find_checkpoints


def whole_checkpoint(asked: str | Path | bool | None, folder: Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint=asked` means; True is the newest whole one in `folder`.

    Raises:
        ValueError: there is none, or the one asked for was cut short while it was written.
    """
    if asked is None or asked is False:
        return None
    if asked is not True:
        if not (Path(asked) / COMPLETE).exists():
            raise ValueError(f"{asked} was cut short while it was written, or is no checkpoint; resume from another")
        return str(asked)
    found = find_checkpoints(folder)
    if found.newest is None:
        cut = f"; {len(found.incomplete)} were cut short while they were written" if found.incomplete else ""
        raise ValueError(f"{folder} holds no checkpoint to resume from{cut}. Start without resume_from_checkpoint.")
    return str(found.newest)
