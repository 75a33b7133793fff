"""JSON files, and JSON lines that are appended to.

Two kinds of readers share one function, `parse_lines`. A run directory is strict: a broken line is an error or a
warning, and what follows the last line break is a line that was being written. A report reads whatever is there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..guards.documents import parse_json
from .files import naming, open_no_link, write_text

logger = logging.getLogger(__name__)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError that names the file where it is no JSON."""
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


def _cut_last_line(file: IO[bytes], size: int) -> None:
    file.seek(0)
    end_of_whole_lines = file.read(size).rfind(b"\n") + 1
    file.truncate(end_of_whole_lines)
    file.seek(0, os.SEEK_END)


@dataclass
class Lines:
    """Lines of JSON: the objects, and (1-based number, why) of each line that is none."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)


def parse_lines(content: str | bytes, *, skip_blank: bool = False) -> Lines:
    """The objects in `content`, one a line; a blank line is broken unless `skip_blank`."""
    lines = Lines()
    for number, line in enumerate(_split(content), start=1):
        if skip_blank and not line.strip():
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            lines.broken.append((number, str(error)))
            continue
        if isinstance(entry, dict):
            lines.entries.append(entry)
        else:
            lines.broken.append((number, f"expected an object, got {type(entry).__name__}"))
    return lines


def _split(content: str | bytes) -> Sequence[str | bytes]:
    """The lines, at line feeds alone: JSON text may hold every other character that ends a line."""
    if not content:
        return []
    if isinstance(content, bytes):
        return content.removesuffix(b"\n").split(b"\n")
    return content.removesuffix("\n").split("\n")


def read_sound_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All whole lines that are JSON objects, and a sentence on each whole line that is none."""
    content = path.read_bytes()
    lines = parse_lines(content[: content.rfind(b"\n") + 1])
    return lines.entries, [f"{path}:{number}: not a line of JSON: {why}" for number, why in lines.broken]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the rest after the last line break is a line that was being written.

    Raises:
        ValueError: a line is no JSON object; it is named.
    """
    entries, broken = read_sound_lines(path)
    if broken:
        raise ValueError(broken[0])
    return entries


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a log, oldest first; none without a file. A broken line is left out, with a warning."""
    entries, broken = read_sound_lines(path) if path.exists() else ([], [])
    for sentence in broken:
        logger.warning("%s; the line is left out, those after it are kept", sentence)
    return entries


def rewrite_log(path: Path, keeps: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Rewrite a log, atomically, with the lines that `keeps` accepts, and return these. No log is an empty one.

    A run that is resumed drops what it logged after its checkpoint: it logs that again.
    """
    lines = [line for line in read_log(path) if keeps(line)]
    write_text(path, "".join(map(json_line, lines)))
    return lines
