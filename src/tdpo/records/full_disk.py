"""Errors of a full disk from whatever library writes: they name the path, what it takes and what is free."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import FULL, free_bytes, full_disk

# How libraries that write by themselves say that a disk is full; torch says only that a write failed.
WORDS_OF_A_FULL_DISK = ("No space left", "StorageFull", "os error 28", "Disk quota exceeded")
TORCH_WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "basic_ios::clear", "iostream error")
NEARLY_FULL = 1 << 20  # a write of more than what is left fails, and leaves some


@contextmanager
def telling_of_a_full_disk(place: Path, size: int | None = None) -> Iterator[None]:
    """Inside, an error of a disk that is full, from whatever library, becomes an OSError that names the file or folder,
    how much is free, and `size`, the bytes that are written there at least, if known."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is not None:
            if "bytes free" in str(error.strerror):
                raise  # of one file, and it says more
            place = _named(error, place)
        elif not _is_of_a_full_disk(error, place):
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                raise OSError(error.errno, error.strerror, str(place)) from error
            raise
        number = error.errno if isinstance(error, OSError) and error.errno in FULL else errno.ENOSPC
        raise full_disk(place, number, size, at_least=True) from error


def require_free(place: Path, size: int) -> None:
    """Raise the error of a full disk now, where `size` bytes will not fit on the disk of `place`."""
    if free_bytes(place) < size:
        raise full_disk(place, errno.ENOSPC, size, at_least=True)


def _named(error: OSError, place: Path) -> Path:
    return Path(error.filename) if isinstance(error.filename, str) else place


def _is_of_a_full_disk(error: Exception, place: Path) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    if any(words in text for words in WORDS_OF_A_FULL_DISK):
        return True
    return any(words in text for words in TORCH_WRITE_FAILED) and free_bytes(place) < NEARLY_FULL
