"""Text of somebody else where it is shown: on a terminal, in Markdown, in a cell of a spreadsheet.

A name of a model, a key of a recipe or a line of a template may hold what a terminal, a spreadsheet or a web page
would obey. Each function here returns text that only shows.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

# Joiners shape the scripts and emoji that use them; the spaces of other scripts are as harmless as ours.
_JOINERS = "\u200c\u200d"
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_QUOTED_FORMULA = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# `_` and `~` as they stand in names and paths, inside words or before a slash, mean nothing in Markdown.
_MARKDOWN = re.compile(r"[\\`*\[\]!|]|(?<![^\W_])_|_(?![^\W_])|~(?=~)|(?<=~)~")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(character: str) -> str:
    """`character` by its number, as Python writes it in a string: \\x1b, \\u202e, \\U000e0001."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """`text` without the characters that move a terminal's cursor, change its colours, or reverse what is read."""
    return text if text.isprintable() else "".join(c if _shows(c) else escaped(c) for c in text)


def _shows(character: str) -> bool:
    shaping = character in "\n\t" or character in _JOINERS
    return shaping or character.isprintable() or unicodedata.category(character) == "Zs"


def printable_json(value: Any) -> str:
    """`value` as JSON of one line whose characters all show; JSON's own escapes stand for the others."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if _shows(c) else json.dumps(c)[1:-1] for c in text)


def why_no_plain_text(text: str) -> str | None:
    """Why `text` is no name, path or sentence of one line: its first character that is none; None where it is one."""
    for place, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        if category in ("Cc", "Cs", "Zl", "Zp"):
            kind = "half a character (a lone surrogate)" if category == "Cs" else "the control character"
            return f"holds {kind} {escaped(character)} at place {place}; expected plain text of one line"
    return None


def spreadsheet_cell(text: str) -> str:
    """`text` for a cell of a CSV file, with an apostrophe before what a spreadsheet would take for a formula.

    Numbers stay numbers. `cell_text` gives the text back, whatever it was.
    """
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def cell_text(cell: str) -> str:
    """The text that `spreadsheet_cell` was given."""
    return cell[1:] if _QUOTED_FORMULA.match(cell) else cell


def markdown_text(text: str) -> str:
    """`text` as it stands, in one line of Markdown: no markup, no HTML, no cells of a table."""
    line = printable(" ".join(text.split()))
    line = "".join(_HTML.get(c, c) for c in line)
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)


def quoted_yaml(text: str) -> str:
    """`text` as a double-quoted scalar of YAML, in ASCII and on one line."""
    special = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    shown = (special.get(c) or (c if " " <= c <= "~" else escaped(c)) for c in text)
    return f'"{"".join(shown)}"'
