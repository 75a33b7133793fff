"""Files that are whole at any moment, and errors of the disk that say which file and how much space is free.

Nothing is written through a symbolic link: a new file takes a link's place, and one that is added to must be no link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write `text` as UTF-8, as `write_bytes` does; `errors` says what becomes of lone surrogates."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, content: bytes) -> None:
    """Write through a temporary file beside `path`, so that readers see the old content or the new one."""
    with naming(path, len(content)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with naming(path, len(content)), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600, an ordinary file has the umask's rights
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Inside the block, an OSError without a file name gets `path`; one of a full disk also says how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(path, error.errno, size) from error
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def full_disk(path: Path, number: int | None = None, size: int | None = None, *, at_least: bool = False) -> OSError:
    """The error for a disk that is too full for `path`; `size` is the number of bytes to write, if known."""
    number = errno.ENOSPC if number is None else number
    to_write = "" if size is None else f"{'at least ' * at_least}{size:,} bytes to write, "
    with contextlib.suppress(OSError):
        free = f"{free_bytes(path):,} bytes free"
        return OSError(number, f"{os.strerror(number)} ({to_write}{free}); free some, then go on", str(path))
    return OSError(number, os.strerror(number), str(path))


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def open_no_link(path: Path, mode: str) -> Iterator[IO[Any]]:
    """Open `path` for writing. A symbolic link is refused, since it could lead out of the folder."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    try:
        file = open(path, mode, opener=opener)  # noqa: SIM115  # only opening it is guarded here
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(
            errno.ELOOP, "is a symbolic link, and nothing is written through one; remove it", str(path)
        ) from None
    with file:
        yield file


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk, as far as the system can do that for a folder."""
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
