"""Files that are whole at any moment: atomic text and JSON, append-only JSON lines, a lock."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..guards.documents import parse_json


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_main_process() -> bool:
    """Whether this process writes: the first of a distributed launch (by RANK), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file beside `path`, so that readers see the old text or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600, an ordinary file has the umask's rights
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    line = json_line(entry)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                _cut_last_line(file, size)
        file.write(line.encode())


def _cut_last_line(file: Any, size: int) -> None:
    file.seek(0)
    kept = file.read(size).rfind(b"\n") + 1
    file.truncate(kept)
    file.seek(0, os.SEEK_END)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the rest after the last line break is a line that was being written."""
    text = path.read_bytes()
    entries = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entries.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not a line of JSON: {error}") from None
    return entries


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Try to hold `path` as a lock file; gives whether this process holds it now."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind, and no protection
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
