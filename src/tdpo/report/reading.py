"""Files as a report reads them: whatever is there, and a note to the reader on whatever is missing or broken."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..guards.documents import parse_json
from ..records.csv_files import csv_lines
from ..records.json_files import parse_lines


@dataclass
class LenientFolder:
    """A folder whose files may be missing or broken: each gap leaves an empty value and a sentence in `notes`.

    `consequence` says what the reader goes without, as the end of that sentence. A file that is missing is looked for
    in the folders of `fallbacks` too.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    fallbacks: tuple[Path, ...] = ()

    def place(self, name: str) -> Path:
        """Where the file is, or would be."""
        places = (self.path / name, *(folder / name for folder in self.fallbacks))
        return next((place for place in places if place.exists()), places[0])

    def text(self, name: str, consequence: str) -> str | None:
        """The file's text; bytes that are no UTF-8 are replaced. None where it cannot be read."""
        path = self.place(name)
        if not path.exists():
            self.notes.append(f"{name} is missing: {consequence}.")
            return None
        try:
            return path.read_bytes().decode("utf-8", errors="replace")
        except OSError as error:
            self.notes.append(f"{name} cannot be read ({error.strerror}): {consequence}.")
            return None

    def json(self, name: str, consequence: str) -> dict[str, Any]:
        """The JSON object in a file."""
        text = self.text(name, consequence)
        if text is None:
            return {}
        try:
            value = parse_json(text)
        except ValueError as error:
            self.notes.append(f"{name} is not valid JSON ({error}): {consequence}.")
            return {}
        if not isinstance(value, dict):
            self.notes.append(f"{name} holds a {type(value).__name__} where an object is expected: {consequence}.")
            return {}
        return value

    def json_lines(self, name: str, consequence: str) -> list[dict[str, Any]]:
        """The JSON objects in a file of one a line."""
        text = self.text(name, consequence)
        if text is None:
            return []
        lines = parse_lines(text, skip_blank=True)
        if lines.broken:
            first, count = lines.broken[0][0], len(lines.broken)
            which = f"line {first}" if count == 1 else f"{count} lines, the first is line {first}"
            self.notes.append(f"{name}: {which} is not a JSON object and was left out; an interrupted write does this.")
        if not lines.entries:
            self.notes.append(f"{name} is empty: {consequence}.")
        return lines.entries

    def table(self, name: str, consequence: str) -> Iterator[dict[str, str]]:
        """The rows of a CSV file by the names of its columns; rows with another number of cells are left out."""
        path = self.path / name
        if not path.is_file():
            self.notes.append(f"{name} is missing: {consequence}.")
            return
        broken = 0
        try:
            lines = csv_lines(path, errors="replace")
            _, columns = next(lines, (0, []))
            for _, cells in lines:
                if len(cells) == len(columns):
                    yield dict(zip(columns, cells, strict=True))
                elif cells:
                    broken += 1
        except csv.Error as error:
            self.notes.append(f"{name} cannot be read to its end: {error}.")
        if broken:
            which = "1 line has" if broken == 1 else f"{broken} lines have"
            self.notes.append(f"{name}: {which} the wrong number of fields.")
