"""Files that are opened as bytes, gzip among them, and how far a compressed one may expand.

A few kilobytes of gzip can stand for gigabytes. They are expanded piece by piece, and reading stops where no text
would be: beyond `MOST_FOLD` times what was read of the file, or beyond a limit in all.
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
FREE = 64 * MIB  # expanded bytes about which nothing is asked
MOST_FOLD = 200  # texts shrink to a third or a tenth, rows that are nearly the same to a hundredth
MOST = 8192 * MIB
PIECE = 256 * 1024


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, expanded where its name ends in .gz; UTF-16 is refused here."""
    with path.open("rb") as file:
        stream: Any = io.BufferedReader(_Expanded(file, path), PIECE) if path.suffix.lower() == ".gz" else file
        try:
            if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UnreadablePreferences(f"{path}: the file is UTF-16. Save it as UTF-8.")
            yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UnreadablePreferences(f"{path}: the compressed file is damaged or cut short ({error}).") from error


def check_expanded(path: Path, expanded: int, read: int) -> None:
    """Raise `UnreadablePreferences` where `read` bytes of the file `path` have become too many `expanded` ones."""
    chosen = os.environ.get(LIMIT_VARIABLE, "")
    if chosen and not chosen.isdecimal():
        raise UnreadablePreferences(f"{LIMIT_VARIABLE} is {chosen!r}; it must be a number of MiB, such as 20000.")
    most = int(chosen) * MIB if chosen else MOST
    if expanded > most:
        what = f"to more than {most // MIB} MiB"
    elif not chosen and expanded > FREE and expanded > MOST_FOLD * read:
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
    """What a gzip file holds, with an eye on how much that becomes."""

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
        if self._expanded > FREE or LIMIT_VARIABLE in os.environ:
            check_expanded(self._path, self._expanded, self._file.tell())
        return len(piece)

    def readall(self) -> bytes:
        pieces = bytearray()
        buffer = bytearray(PIECE)
        while count := self.readinto(buffer):
            pieces += memoryview(buffer)[:count]
        return bytes(pieces)
