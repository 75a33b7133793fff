"""CSV files that a spreadsheet may open, and that are byte-identical for equal content.

Numbers have one format: `repr` of the float, nothing for None and NaN. Text that a spreadsheet would take for a formula
has an apostrophe before it, which `csv_lines` takes away.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..guards.texts import cell_text, spreadsheet_cell
from .files import write_text

FIELD_CHARACTERS = 16_000_000  # a response of any length; the csv module's own limit is 128 KiB


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, atomically: the names of the columns, then the rows in the order given."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_text(value) for value in row])
    write_text(path, "".join(lines.written))


class _Lines:
    """Turns the writer's line ends into plain ones.

    The writer quotes only those line breaks that are part of its own line end, and a carriage return without quotes
    reads as the end of a line; hence it is told to use both.
    """

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")


def _text(value: Any) -> str:
    if hasattr(value, "item"):  # a scalar of numpy
        value = value.item()
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(value)
    return spreadsheet_cell(value) if isinstance(value, str) else str(value)


def csv_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """(number of the line in the file, cells) of every row, the names of the columns first.

    Raises csv.Error where the file cannot be read as CSV to its end; `errors` says what becomes of bytes that are no
    UTF-8.
    """
    before = csv.field_size_limit(FIELD_CHARACTERS)
    try:
        with path.open(encoding="utf-8", errors=errors, newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                yield reader.line_num, [cell_text(cell) for cell in cells]
    finally:
        csv.field_size_limit(before)
