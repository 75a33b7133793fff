"""Detection of messages that were stored as text: as JSON, or as the `repr` of a Python list.

Tables without column types store lists of messages in this way.
"""

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

_SPEAKERS = frozenset([*ROLES, *ROLE_NAMES_ELSEWHERE, "function"])
_SPEAKER = r"""["'](?:role|from)\\?["']\s*:"""
_KNOWN_SPEAKER = rf"""{_SPEAKER}\s*\\?["'](?:{"|".join(_SPEAKERS)})\b"""
# A list, a tuple or a numpy array of objects, or a single object, perhaps quoted once more.
_OBJECTS = re.compile(r"""\s*["']?\s*(?:array\s*\(\s*)?[\[(]*\s*\{""")
_SAYS_WHO = re.compile(_SPEAKER, re.IGNORECASE)
# Text that neither JSON nor Python can read: numpy omits commas, tables truncate long cells, texts contain quotes.
_BROKEN = re.compile(
    rf"""\s*(?:array\s*\(\s*)?(?:[\[(]+\s*\{{.*?|\{{[^{{]*?){_KNOWN_SPEAKER}""", re.IGNORECASE | re.DOTALL
)
# Objects of a client library, as `str` writes them: ChatCompletionMessage(content='Hello', role='assistant').
_REPRESENTED = re.compile(r"""\s*[\[(]*\s*\w*Message\w*\([^()]*?\b(?:role|content)=""")


def holds_messages(text: str) -> bool:
    """Return whether all of `text` is a list of messages, or one message, with its keys in any order.

    A text that only quotes messages, in the middle of something else, does not count.
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
    return _is_message(value) and _speaker(value).strip().lower() in _SPEAKERS


def _is_message(part: Any) -> bool:
    return isinstance(part, Mapping) and bool(_speaker(part)) and bool({"content", "value", "tool_calls"} & set(part))


def _speaker(message: Mapping[Any, Any]) -> str:
    return str(message.get("role") or message.get("from") or "")


def _parsed(text: str) -> Any:
    """Return the value that JSON or Python reads from `text`, or `text` itself if neither can."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
