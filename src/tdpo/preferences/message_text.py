"""Messages that were stored as text: JSON, or Python's own writing of a list, as a table without types keeps it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_NAMES_ELSEWHERE = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}

_KNOWN = frozenset([*ROLES, *ROLE_NAMES_ELSEWHERE, "function"])
_SPEAKER = r"""["'](?:role|from)\\?["']\s*:"""
_KNOWN_SPEAKER = rf"""{_SPEAKER}\s*\\?["'](?:{"|".join(_KNOWN)})\b"""
# A list, a tuple or numpy's array of objects, or a single object, maybe quoted once more.
_OBJECTS = re.compile(r"""\s*["']?\s*(?:array\s*\(\s*)?[\[(]*\s*\{""")
_SAYS_WHO = re.compile(_SPEAKER, re.IGNORECASE)
# What neither JSON nor Python reads: numpy leaves out commas, tables cut long cells, texts hold quotes of their own.
_BROKEN = re.compile(
    rf"""\s*(?:array\s*\(\s*)?(?:[\[(]+\s*\{{.*?|\{{[^{{]*?){_KNOWN_SPEAKER}""", re.IGNORECASE | re.DOTALL
)
# Objects of a client library, as `str` writes them: ChatCompletionMessage(content='Hello', role='assistant').
_REPRESENTED = re.compile(r"""\s*[\[(]*\s*\w*Message\w*\([^()]*?\b(?:role|content)=""")


def holds_messages(text: str) -> bool:
    """Whether all of `text` is a list of messages, or one message, in whatever order its keys stand.

    A text that only quotes messages, in the middle of something else, is a text.
    """
    if _REPRESENTED.match(text):
        return True
    if not _OBJECTS.match(text) or not _SAYS_WHO.search(text):
        return False
    value: Any = text
    for _ in range(3):  # JSON may have been written into JSON
        value = _parsed(value) if isinstance(value, str) else value
    if isinstance(value, str):
        return _BROKEN.match(value) is not None
    if isinstance(value, list | tuple):
        return any(_is_message(part) for part in value)
    return _is_message(value) and _speaker(value).strip().lower() in _KNOWN


def _is_message(part: Any) -> bool:
    return isinstance(part, Mapping) and bool(_speaker(part)) and bool({"content", "value", "tool_calls"} & set(part))


def _speaker(message: Mapping[Any, Any]) -> str:
    return str(message.get("role") or message.get("from") or "")


def _parsed(text: str) -> Any:
    """The value that JSON or Python reads; the text itself where neither does."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
