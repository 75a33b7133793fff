"""How `--overwrite` replaces a run: the old one is moved aside, and let go of once the new one has saved a model.

Until then it lies whole in `replaced-run` of the run directory: a run directory of its own, which every command reads.
It is inside and not beside, because a move within one folder is a rename on any disk, and needs no other rights.
"""

from __future__ import annotations

from pathlib import Path

from ..records.files import open_no_link, sync_folder
from ..records.folders import remove
from ..records.names import MODEL_FOLDER, REPLACED_FOLDER
from .contents import BEGINNING, BEING_MOVED, is_ours


def replaced_run(folder: Path) -> Path | None:
    """The run that the one in `folder` was to replace and that is still kept; None where there is none."""
    kept = folder / REPLACED_FOLDER
    return kept if kept.is_dir() and not kept.is_symlink() else None


def is_unsettled(folder: Path) -> bool:
    """Whether a run is kept here, or a kill stopped its being moved."""
    return replaced_run(folder) is not None or (folder / BEING_MOVED).is_dir()


def make_way(folder: Path, *, keep: bool) -> None:
    """Clear `folder` for a new run: move the old one aside, or delete it unless `keep`. Sets the mark BEGINNING.

    Where another is kept already, the one that is in the way never saved a model (`settle`), and is deleted.
    """
    mark, moving = folder / BEGINNING, folder / BEING_MOVED
    old = [entry for entry in folder.iterdir() if is_ours(entry)]
    moves = keep and bool(old) and replaced_run(folder) is None
    if moves:
        moving.mkdir()  # before the mark, which alone says that no file here is of use
    remove(mark)
    with open_no_link(mark, "w"):
        sync_folder(folder)
    for entry in old:
        if moves:
            entry.rename(moving / entry.name)
        else:
            remove(entry)
    if moves:
        moving.rename(folder / REPLACED_FOLDER)
        sync_folder(folder)


def put_back(folder: Path) -> None:
    """Delete what a new run wrote and put the kept one in its place; a kill at any moment leaves that to `settle`."""
    if not (folder / BEING_MOVED).is_dir():
        for entry in folder.iterdir():
            if is_ours(entry):
                remove(entry)
        (folder / REPLACED_FOLDER).rename(folder / BEING_MOVED)
    _finish_moving_back(folder)


def let_go(folder: Path) -> None:
    """Delete the kept run, as the new one has a model."""
    if (kept := replaced_run(folder)) is not None:
        remove(kept)
        sync_folder(folder)


def settle(folder: Path, *, new_is_worth_nothing: bool) -> None:
    """Finish what a kill stopped while a run was replaced: afterwards there is a whole run, and perhaps a kept one.

    A run that was replaced by one that got nowhere is put back; one whose successor has a model is let go of.
    """
    if (folder / BEING_MOVED).is_dir():
        _finish_moving_back(folder)
    if replaced_run(folder) is None:
        return
    if (folder / MODEL_FOLDER).is_dir() and not (folder / BEGINNING).exists():
        let_go(folder)
    elif new_is_worth_nothing:
        put_back(folder)


def _finish_moving_back(folder: Path) -> None:
    moving = folder / BEING_MOVED
    for entry in moving.iterdir():
        remove(folder / entry.name)
        entry.rename(folder / entry.name)
    moving.rmdir()
    remove(folder / BEGINNING)
    sync_folder(folder)
