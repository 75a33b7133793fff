"""Escaping of other people's text for the place where it is shown: a terminal, Markdown, a cell of a spreadsheet.

The name of a model, a key of a recipe or a line of a template may contain commands to a terminal, a spreadsheet or a
web page. The text that these functions return is only displayed and never obeyed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

# Joiners shape the scripts and emoji that use them. The spaces of all scripts are harmless.
_JOINERS = "\u200c\u200d"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_QUOTED_FORMULA = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# `_` and `~` have no meaning in Markdown where they occur in names and paths: inside words or before a slash.
_MARKDOWN = re.compile(r"[\\`*\[\]!|]|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(character: str) -> str:
    """Return the escape sequence of `character` in a Python string: \\x1b, \\u202e, \\U000e0001."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """Escape the characters in `text` that move a terminal's cursor, change its colours or reverse the text."""
    return text if text.isprintable() else "".join(c if _shows(c) else escaped(c) for c in text)


def _shows(character: str) -> bool:
    shaping = character in "\n\t" or character in _JOINERS
    return shaping or character.isprintable() or unicodedata.category(character) == "Zs"


def printable_json(value: Any) -> str:
    """Return `value` as one line of JSON, with all characters escaped that a terminal does not display."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if _shows(c) else json.dumps(c)[1:-1] for c in text)


def why_no_plain_text(text: str) -> str | None:
    """Return why `text` is not plain text of one line, naming its first control character; None if it is."""
    for place, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp"):
            kind = "half a character (a lone surrogate)" if category == "Cs" else "the control character"
            return f"holds {kind} {escaped(character)} at place {place}; expected plain text of one line"
    return None


def spreadsheet_cell(text: str) -> str:
    """Return `text` for a cell of a CSV file, with an apostrophe before what a spreadsheet takes for a formula.

    Numbers stay numbers. `cell_text` restores every text.
    """
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def cell_text(cell: str) -> str:
    """Return the text from which `spreadsheet_cell` made `cell`."""
    return cell[1:] if _QUOTED_FORMULA.match(cell) else cell


def markdown_text(text: str) -> str:
    """Return `text` as one line of Markdown, with markup, HTML and the borders of table cells escaped."""
    line = printable(" ".join(text.split()))
    line = "".join(_HTML.get(c, c) for c in line)
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)


def quoted_yaml(text: str) -> str:
    """Return `text` as a double-quoted YAML scalar, in ASCII and on one line."""
    special = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    shown = (special.get(c) or (c if " " <= c <= "~" else escaped(c)) for c in text)
    return f'"{"".join(shown)}"'
