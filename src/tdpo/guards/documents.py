"""YAML and JSON within limits that no file of a person meets, so that a hostile one ends in a sentence.

A few hundred bytes of YAML whose aliases name one another stand for billions of values, and brackets inside brackets
exhaust the stack of whoever walks through them.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 128 * 1024
"""Of a YAML file; the longest recipe of ours has 4 KiB."""
MAX_VALUES = 5_000
"""Keys and values of a YAML document, each alias counted as all that it stands for."""
MAX_DEPTH = 32
"""Sections inside sections of a YAML document."""
MAX_JSON_DEPTH = 100
"""Lists and objects inside one another in a JSON document."""


class DocumentError(ValueError):
    """A document beyond the limits: why, and at which 1-based line (None where it is not known)."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most `limit` bytes. Raises DocumentError for a longer one, OSError as the system does.

    Never reads more than that, also of a device without an end.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            size = path.stat()
            met = f"is {size.st_size:,} bytes long" if stat.S_ISREG(size.st_mode) else "does not end"
            raise DocumentError(f"{met}; at most {limit:,} bytes are read")
    return content


def checked_text(text: str) -> str:
    """`text`; raises DocumentError where it is longer than a YAML file may be."""
    if len(text) > MAX_BYTES:
        raise DocumentError(f"is {len(text):,} characters long; at most {MAX_BYTES:,} are read")
    return text


class LimitedComposer:
    """Mixin before a loader of PyYAML: stops at brackets inside brackets while the document is still being read."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            line: int = self.peek_event().start_mark.line + 1  # type: ignore[attr-defined]
            raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels", line)
        try:
            return super().compose_node(parent, index)  # type: ignore[misc]
        finally:
            self._depth -= 1


def check_expanded(root: yaml.Node) -> None:
    """Raise DocumentError where aliases make more values or levels of the document than the limits allow, or a value
    that contains itself. Takes time by what is written, not by what it stands for."""
    values, _ = _measure(root, 1, {})
    if values > MAX_VALUES:
        raise DocumentError(f"stands for {values:,} values once its aliases are filled in; at most {MAX_VALUES:,} are")


def _measure(node: yaml.Node, level: int, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, levels) of the node; `known` has None for those that are being measured."""
    line = node.start_mark.line + 1
    if id(node) not in known:
        known[id(node)] = None
        inside = [] if isinstance(node.value, str) else node.value
        flat = (part for entry in inside for part in (entry if isinstance(entry, tuple) else (entry,)))
        if level > MAX_DEPTH:
            raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels once its aliases are filled in", line)
        parts = [_measure(part, level + 1, known) for part in flat]
        known[id(node)] = 1 + sum(values for values, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    measured = known[id(node)]
    if measured is None:
        raise DocumentError("a value contains itself (an alias inside its own anchor)", line)
    if level + measured[1] - 1 > MAX_DEPTH:
        raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels once its aliases are filled in", line)
    return measured


def unshared(value: Any) -> Any:
    """A copy in which no two places hold the same list or mapping, as the aliases of a document make them."""
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


def load_yaml(text: str) -> Any:
    """The value of a YAML document by PyYAML's own rules, within the limits.

    Raises:
        DocumentError: it is beyond them, or holds a value that cannot be made.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    class Loader(LimitedComposer, yaml.SafeLoader):
        pass

    loader = Loader(checked_text(text))
    try:
        return constructed(loader, loader.get_single_node())
    finally:
        loader.dispose()


def constructed(loader: yaml.SafeLoader, root: yaml.Node | None) -> Any:
    """The values of a composed document, none shared by two places. Raises as `load_yaml` does."""
    import yaml

    if root is None:
        return None
    check_expanded(root)
    try:
        return unshared(loader.construct_document(root))
    except (yaml.YAMLError, DocumentError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # PyYAML's constructors take a tag such as !!bool or !!timestamp at its word.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DocumentError(f"holds a value that its tag does not fit ({reason})") from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document. Raises ValueError where it is none, or nested deeper than anything of ours."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise DocumentError(_too_deep("so deep that it cannot be read")) from None
    brackets = (text.count(b"[") + text.count(b"{")) if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > MAX_JSON_DEPTH:  # fewer cannot lie deeper
        depth = _depth_of(value)
        if depth > MAX_JSON_DEPTH:
            raise DocumentError(_too_deep(f"{depth} levels deep"))
    return value


def _too_deep(met: str) -> str:
    return f"lists and objects inside one another, {met}; at most {MAX_JSON_DEPTH} levels are read"


def _depth_of(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        inner, depth = waiting.pop()
        if isinstance(inner, dict | list):
            deepest = max(deepest, depth)
            waiting.extend((part, depth + 1) for part in (inner.values() if isinstance(inner, dict) else inner))
    return deepest
