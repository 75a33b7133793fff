"""Opening of plain and gzip-compressed files, with a limit on how far a compressed file may expand.

A few kilobytes of gzip can stand for gigabytes. A compressed file is therefore expanded piece by piece. Reading stops
when the expanded text exceeds `MOST_FOLD` times the bytes read so far, which no real text does, or `MOST` bytes in all.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tdpo.preferences.rows import UnreadablePreferences

MIB = 1 << 20
LIMIT_VARIABLE = "TDPO_MAX_EXPANDED_MIB"
UNCHECKED = 64 * MIB  # the ratio is not checked below this many expanded bytes
MOST_FOLD = 200  # texts shrink to a third or a tenth, rows that are nearly the same to a hundredth
MOST = 8192 * MIB
PIECE = 256 * 1024


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """Open `path` as a stream of bytes, expanded if its name ends in .gz.

    Raises UnreadablePreferences for a UTF-16 file and for a damaged or truncated compressed file.
    """
    with path.open("rb") as file:
        stream: Any = io.BufferedReader(_Expanded(file, path), PIECE) if path.suffix.lower() == ".gz" else file
        try:
            if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UnreadablePreferences(f"{path}: the file is UTF-16. Save it as UTF-8.")
            yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UnreadablePreferences(f"{path}: the compressed file is damaged or cut short ({error}).") from error


def check_expanded(path: Path, expanded: int, read: int) -> None:
    """Raise `UnreadablePreferences` if `read` bytes of the file `path` have become too many `expanded` bytes."""
    user_limit = os.environ.get(LIMIT_VARIABLE, "")
    if user_limit and not user_limit.isdecimal():
        raise UnreadablePreferences(f"{LIMIT_VARIABLE} is {user_limit!r}; it must be a number of MiB, such as 20000.")
    most = int(user_limit) * MIB if user_limit else MOST
    if expanded > most:
        what = f"to more than {most // MIB} MiB"
    elif not user_limit and expanded > UNCHECKED and expanded > MOST_FOLD * read:
        what = f"more than {MOST_FOLD}-fold (the first {_size(read)} to {_size(expanded)})"
    else:
        return
    raise UnreadablePreferences(
        f"{path}: the file of {_size(path.stat().st_size)} expands {what}, as a file does that is made to fill the "
        f"memory. If it is sound, set {LIMIT_VARIABLE} to the MiB that it may expand to, or expand it yourself."
    )


def _size(count: int) -> str:
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.0f} KiB"


class _Expanded(io.RawIOBase):
    """The expanded bytes of a gzip file. Every read checks the limits of `check_expanded`."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._expanded = file, path, 0
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset == 0:
            self._expanded = 0
        return self._gzip.seek(offset, whence)

    def tell(self) -> int:
        return self._gzip.tell()

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        piece = self._gzip.read(min(len(view), PIECE))
        view[: len(piece)] = piece
        self._expanded += len(piece)
        if self._expanded > UNCHECKED or LIMIT_VARIABLE in os.environ:
            check_expanded(self._path, self._expanded, self._file.tell())
        return len(piece)

    def readall(self) -> bytes:
        pieces = bytearray()
        buffer = bytearray(PIECE)
        while count := self.readinto(buffer):
            pieces += memoryview(buffer)[:count]
        return bytes(pieces)
