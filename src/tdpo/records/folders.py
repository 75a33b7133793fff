"""Folders that appear whole or not at all: they are written beside their place and moved there at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import naming, sync_folder


def remove(path: Path) -> None:
    """Delete a file, a folder with its content, or a symbolic link (not its target). A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_writable(folder: Path, key: str) -> None:
    """Raise where nothing can be written to `folder`, or where it cannot be made; `key` is what sets it.

    A file without a name is made for that: rights alone do not tell of a disk that is mounted to be read.

    Raises:
        NotADirectoryError: it, or a folder above it, is a file.
        PermissionError, OSError: the system refuses to write there.
    """
    above = folder.absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    remedy = f"choose another folder ({key}=…)"
    if not above.is_dir():
        raise NotADirectoryError(f"{key}: {folder} cannot be a folder, as {above} is a file; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        message = f"{key}: {folder} cannot be written to ({above}: {error.strerror}); {remedy}"
        raise type(error)(message) from error


def empty_folder(path: Path) -> Path:
    """Make an empty folder at `path`; what was there before is deleted."""
    remove(path)
    path.mkdir(parents=True)
    return path


@contextmanager
def staged_folder(place: Path, staging: Path) -> Iterator[Path]:
    """Give an empty folder to write into. It replaces `place` once the block has ended and all files are on disk.

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
    """Wait until every file below `folder`, and its name, is on disk."""
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            sync_folder(path)
        elif path.is_file():
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
