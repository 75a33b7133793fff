"""Readers of JSON Lines, JSON, CSV and plain text. Each yields a numbered record or a problem for every row."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tdpo.preferences.compressed import open_bytes
from tdpo.preferences.fields import FINISHED, REWARDS, find_surrogate
from tdpo.preferences.formats import PAIRS, Requirement, describe_document
from tdpo.preferences.reasons import Reason
from tdpo.preferences.rows import RowProblem, UnreadablePreferences, shown


class Record(NamedTuple):
    """The values of one row as they were read, before any check, with the number of the row."""

    row: int
    values: Any


Read = Iterator[Record | RowProblem]


class _RepeatedKey(dict[str, Any]):
    """An object in which `key` occurs more than once."""

    key = ""


class _Decoder:
    """A JSON decoder that marks objects with a repeated key, where the standard one silently drops the first value."""

    def __init__(self) -> None:
        self.repeated = False
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        self.repeated = True
        ambiguous = _RepeatedKey(values)
        names = [name for name, _ in pairs]
        ambiguous.key = next(name for name in names if names.count(name) > 1)
        return ambiguous

    def decode(self, text: str) -> Any:
        """Decode `text`. Raises ValueError or RecursionError as `json` does."""
        self.repeated = False
        return self._decode(text)

    def record(self, row: int, values: Any, source: str) -> Record | RowProblem:
        """Return the values that were decoded last as a record, or as a problem if an object repeats a key."""
        key = _repeated_key(values) if self.repeated else None
        if key is not None:
            return RowProblem(source, row, key, Reason.REPEATED_KEY, shown(values))
        return Record(row, values)


def _repeated_key(value: Any) -> str | None:
    if isinstance(value, _RepeatedKey):
        return value.key
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for key in map(_repeated_key, parts) if key is not None), None)


def read_json_lines(path: Path) -> Read:
    """Yield one object per line, numbered by line. Blank lines and a byte order mark are skipped."""
    with open_bytes(path) as stream:
        yield from _read_lines(stream, str(path))


def _read_lines(stream: io.BufferedIOBase, source: str) -> Read:
    decoder = _Decoder()
    for row, raw in enumerate(stream, start=1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if row == 1 else raw
        try:
            text = line.decode("utf-8").strip()
            if text:
                yield decoder.record(row, decoder.decode(text), source)
        except UnicodeDecodeError as error:
            before = line[: error.start].decode("utf-8")
            escaped = before + line[error.start :].decode("utf-8", "backslashreplace").strip()
            yield RowProblem(source, row, "line", Reason.NOT_UTF8, shown(escaped, near=len(before)))
        except json.JSONDecodeError as error:
            at = f"{error.msg} at character {error.pos + 1}: {shown(error.doc, near=error.pos)}"
            yield RowProblem(source, row, "line", Reason.NOT_JSON, at)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
            yield RowProblem(source, row, "line", Reason.NOT_JSON, f"{error}: {shown(text)}")


def read_text(path: Path) -> Read:
    """Yield every line that is not blank as a prompt, unchanged and numbered by line.

    Only \\n or \\r\\n ends a line. Other characters that Unicode calls line ends (U+2028, U+0085, form feeds) are text.
    """
    source = str(path)
    with open_bytes(path) as stream:
        for row, raw in enumerate(stream, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if row == 1 else raw
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                escaped = line.decode("utf-8", "backslashreplace")
                yield RowProblem(source, row, "line", Reason.NOT_UTF8, shown(escaped, near=error.start))
                continue
            values = _from_json(text) if text.startswith("{") else None
            if isinstance(values, dict) and "prompt" in values:
                hint = f"{shown(text)}; call the file .jsonl"
                yield RowProblem(source, row, "line", Reason.ROW_AS_TEXT, hint)
            else:
                yield Record(row, {"prompt": text})


def read_json(path: Path, requirement: Requirement = PAIRS) -> Read:
    """Yield the rows of a JSON document, numbered by record.

    The document is a list of rows, such a list under "data", an object with one list per column, or JSON Lines in a
    file that is named .json.
    """
    with open_bytes(path) as stream:
        raw = stream.read()
    source, decoder = str(path), _Decoder()
    if not raw.strip():
        return
    try:
        document = decoder.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        text = raw.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text.startswith(b"{") and b"\n{" in text:  # brace after brace in the first column: JSON Lines
            yield from _read_lines(io.BytesIO(raw), source)
            return
        raise UnreadablePreferences(_broken_document(source, raw, error)) from error
    for row, values in enumerate(_rows_of(document, source, requirement), start=1):
        yield decoder.record(row, values, source)


def _broken_document(source: str, raw: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        line = raw[: error.start].count(b"\n") + 1
        return f"{source}: line {line} is not valid UTF-8. Save the file as UTF-8."
    return (
        f"{source}: not valid JSON ({error}). Repair the file; JSON Lines, one object a line, is read row by row "
        "and can have its broken rows skipped."
    )


def _rows_of(document: Any, source: str, requirement: Requirement) -> list[Any]:
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        return document["data"]
    if isinstance(document, list):
        return document
    if not isinstance(document, dict) or not set(requirement.columns) & set(document):
        raise UnreadablePreferences(
            f"{source}: the file holds {describe_document(document)}. Expected is a list of rows, or an object with "
            f"such a list under 'data'. {requirement.sentence}"
        )
    if not all(isinstance(cells, list) for cells in document.values()) or _holds_messages(document, requirement):
        return [document]
    lengths = {name: len(cells) for name, cells in document.items()}
    if len(set(lengths.values())) > 1:
        raise UnreadablePreferences(f"{source}: the columns differ in length: {lengths}.")
    return [dict(zip(document, cells, strict=True)) for cells in zip(*document.values(), strict=True)]


def _holds_messages(document: dict[str, Any], requirement: Requirement) -> bool:
    """Return whether the lists are conversations, so that the object is a single row and not a table of columns."""
    return any(isinstance(cell, dict) for name in requirement.columns for cell in document.get(name, []))


def read_csv(path: Path, requirement: Requirement = PAIRS) -> Read:
    """Yield the records below the header, numbered from 1. Cells that hold a JSON list of messages are decoded."""
    source = str(path)
    with open_bytes(path) as stream, _unlimited_cells():
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        first = text.readline()
        delimiter = _delimiter(first, "\t" if ".tsv" in path.name.lower() else ",", requirement)
        text.seek(0)
        records = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(records, [])
        duplicates = sorted({name for name in header if header.count(name) > 1})
        if duplicates:
            raise UnreadablePreferences(f"{source}: the header names {', '.join(map(repr, duplicates))} twice.")
        yield from _csv_records(records, header, source)


def _csv_records(records: Any, header: list[str], source: str) -> Read:
    row = 0
    while True:
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            row += 1
            yield RowProblem(source, row, "record", Reason.NOT_CSV, f"{error}, line {records.line_num}")
            continue
        if cells:
            row += 1
            yield _csv_record(row, cells, header, source)


def _csv_record(row: int, cells: list[str], header: list[str], source: str) -> Record | RowProblem:
    for i, cell in enumerate(cells):
        bad = find_surrogate(cell)
        if bad is not None:
            name = header[i] if i < len(header) else "record"
            text = cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            return RowProblem(source, row, name, Reason.NOT_UTF8, shown(text, near=bad))
    if len(cells) != len(header):
        text = f"{len(cells)} cells, header {len(header)}: {shown(cells)}"
        return RowProblem(source, row, "record", Reason.CELL_COUNT, text)
    return Record(row, {name: _cell_value(name, cell) for name, cell in zip(header, cells, strict=True)})


def _cell_value(name: str, cell: str) -> Any:
    """Convert a cell of text to the type that its column has in other formats. A cell that does not fit stays text."""
    if name in ("prompt", "chosen", "rejected"):
        messages = _from_json(cell) if cell.lstrip().startswith("[") else None
        is_messages = isinstance(messages, list) and any(
            isinstance(part, dict) and ("role" in part or "content" in part) for part in messages
        )
        return messages if is_messages or messages == [] else cell
    if name in FINISHED:
        return {"true": True, "false": False, "1": True, "0": False, "": None}.get(cell.strip().lower(), cell)
    if name in REWARDS:
        try:
            return float(cell) if cell.strip() else None
        except ValueError:
            return cell
    if name == "chat_template_kwargs":
        return _from_json(cell) if cell.strip() else None
    return cell


def _from_json(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _delimiter(header: str, usual: str, requirement: Requirement) -> str:
    """Return the first delimiter, beginning with the `usual` one, that makes the required columns appear in the header.

    In many countries spreadsheets write ';'.
    """
    for candidate in (usual, ",", ";", "\t"):
        if set(requirement.columns) <= set(next(csv.reader([header], delimiter=candidate), [])):
            return candidate
    return usual


@contextmanager
def _unlimited_cells() -> Iterator[None]:
    """Lift the limit of 128 KiB a cell, a setting of the process that long conversations exceed, and restore it."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
