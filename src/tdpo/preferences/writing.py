"""Writing preference rows so that an interruption never leaves half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_preferences(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write `rows` as JSON Lines in UTF-8, replacing `path` only when all of them are on disk; how many there were.

    Raises ValueError for NaN or infinite numbers and TypeError for what JSON cannot hold; `path` is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        temporary.unlink(missing_ok=True)  # of a killed process with this number, or a link that leads elsewhere
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
