"""Files that are whole at any moment: atomic text and JSON, append-only JSON lines, a lock.

Nothing is written through a symbolic link: a new file takes a link's place, and one that is added to must be no link.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ..guards.documents import parse_json

FULL = (errno.ENOSPC, errno.EDQUOT)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_main_process() -> bool:
    """Whether this process writes: the first of a distributed launch (by RANK), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside `path`, so that readers see the old text or the new one."""
    with naming(path, len(text)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with naming(path, len(text)), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600, an ordinary file has the umask's rights
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path, size: int | None = None) -> Iterator[None]:
    """Inside, an error of the system that names no file is about `path`; of a full disk it says how full it is."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(path, error.errno, size) from error
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def full_disk(path: Path, number: int | None = None, size: int | None = None) -> OSError:
    """The error of a disk that could not hold `path`, which has `size` bytes where that is known."""
    number = errno.ENOSPC if number is None else number
    needed = "" if size is None else f"{size:,} bytes to write, "
    with contextlib.suppress(OSError):
        free = f"{free_bytes(path):,} bytes free"
        return OSError(number, f"{os.strerror(number)} ({needed}{free}); free some, then go on", str(path))
    return OSError(number, os.strerror(number), str(path))


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def open_no_link(path: Path, mode: str) -> Iterator[IO[Any]]:
    """`path` opened to be written, which must be no symbolic link: it would lead out of the folder."""

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
    """Let the names in `folder` be on disk, as far as the system can promise that of a folder."""
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; the error of a broken one names it."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def json_line(entry: Mapping[str, Any]) -> str:
    """`entry` as one line of JSON."""
    return json.dumps(dict(entry), ensure_ascii=False) + "\n"


def append_jsonl(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one line, in one write, after mending a line that a kill cut off."""
    line = json_line(entry).encode()
    with naming(path, len(line)), open_no_link(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                _cut_last_line(file, size)
        file.write(line)


def _cut_last_line(file: Any, size: int) -> None:
    file.seek(0)
    kept = file.read(size).rfind(b"\n") + 1
    file.truncate(kept)
    file.seek(0, os.SEEK_END)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the rest after the last line break is a line that was being written.

    Raises:
        ValueError: a line is no JSON; it is named.
    """
    entries, broken = read_sound_lines(path)
    if broken:
        raise ValueError(broken[0])
    return entries


def read_sound_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All whole lines that are JSON objects, and a sentence on each whole line that is none."""
    text = path.read_bytes()
    entries, broken = [], []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            broken.append(f"{path}:{number}: not a line of JSON: {error}")
            continue
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            broken.append(f"{path}:{number}: not a line of JSON: expected an object, got {type(entry).__name__}")
    return entries, broken


LOCK_TRIES, LOCK_PAUSE = 5, 0.02  # a process that only asks whether a lock is held holds it for a moment


@contextlib.contextmanager
def lock(path: Path, *, remove: bool = False) -> Iterator[bool]:
    """Try to hold `path` as a lock file; gives whether this process holds it now. `remove` deletes it afterwards."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind, and no protection
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_no_link(path, "a") as file:
        held = any(_try_to_lock(file, fcntl.LOCK_EX, pause=LOCK_PAUSE if n else 0) for n in range(LOCK_TRIES))
        if not held or not _is_at(file, path):  # the holder has removed the file that was opened here
            yield False
            return
        try:
            yield True
        finally:
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool | None:
    """Whether some process holds the lock file; None where that cannot be known."""
    try:
        import fcntl

        with path.open("rb") as file:
            if not _try_to_lock(file, fcntl.LOCK_SH):
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except (ImportError, OSError):
        return None


def _try_to_lock(file: IO[Any], how: int, pause: float = 0.0) -> bool:
    import fcntl

    time.sleep(pause)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
