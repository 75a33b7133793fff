"""Saving models and checkpoints: a full disk says which file it could not take."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runs.files import FULL, free_bytes, full_disk, naming

# How libraries that write by themselves say that a disk is full; torch says only that a write failed.
WORDS_OF_A_FULL_DISK = ("No space left", "StorageFull", "os error 28", "Disk quota exceeded")
TORCH_WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "basic_ios::clear", "iostream error")
NEARLY_FULL = 1 << 20  # a write of more than what is left fails, and leaves some


@contextmanager
def telling_of_a_full_disk(place: Path) -> Iterator[None]:
    """Inside, an error of a disk that is full, from whatever library, becomes an OSError that names the file or folder
    and how much is free."""
    try:
        with naming(place):
            yield
    except OSError as error:
        if error.errno in FULL or not _is_of_a_full_disk(error, place):
            raise
        raise full_disk(place, errno.ENOSPC) from error
    except Exception as error:
        if not _is_of_a_full_disk(error, place):
            raise
        raise full_disk(place, errno.ENOSPC) from error


def _is_of_a_full_disk(error: Exception, place: Path) -> bool:
    text = str(error)
    if any(words in text for words in WORDS_OF_A_FULL_DISK):
        return True
    return any(words in text for words in TORCH_WRITE_FAILED) and free_bytes(place) < NEARLY_FULL
