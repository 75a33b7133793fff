"""Atomic writing of preference rows: an interruption never leaves half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_preferences(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write `rows` as JSON Lines in UTF-8 and return their number. `path` is replaced once all rows are on disk.

    Raises ValueError for NaN or infinite numbers and TypeError for values that JSON cannot represent; `path` is then
    unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process with this number, or a link to another file
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count
