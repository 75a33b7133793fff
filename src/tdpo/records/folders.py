"""Folders that are written whole: staged beside their place, empty at first, and moved there at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import naming, sync_folder


def remove(path: Path) -> None:
    """Delete a file, a folder with all it holds, or a symbolic link and not what it leads to; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty_folder(path: Path) -> Path:
    """A folder that holds nothing, whatever was at `path` before."""
    remove(path)
    path.mkdir(parents=True)
    return path


@contextmanager
def staged_folder(place: Path, staging: Path) -> Iterator[Path]:
    """An empty folder to write into; it takes the place of `place` once the block has ended and all is on disk.

    After an error it is deleted. After a kill it stays, and the next call starts with an empty one.
    """
    empty_folder(staging)
    try:
        yield staging
        sync_tree(staging)
    except BaseException:
        with suppress(OSError):
            remove(staging)
        raise
    remove(place)
    with naming(place):
        staging.rename(place)
    sync_folder(place.parent)


def sync_tree(folder: Path) -> None:
    """Let every file below `folder`, and their names, be on disk."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            sync_folder(path)
        elif path.is_file():
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
