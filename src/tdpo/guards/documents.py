"""Reading of YAML and JSON within limits that no file written by a person reaches.

A hostile file therefore ends in an error message.

A few hundred bytes of YAML whose aliases refer to one another can stand for billions of values. Deeply nested brackets
exhaust the stack of any code that walks through them.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 128 * 1024
"""Size of a YAML file. The longest recipe of this package has 4 KiB."""
MAX_VALUES = 5_000
"""Keys and values of a YAML document. An alias counts as everything that it stands for."""
MAX_DEPTH = 32
"""Nesting of sections in a YAML document."""
MAX_JSON_DEPTH = 100
"""Nesting of lists and objects in a JSON document."""


class DocumentError(ValueError):
    """A document exceeds a limit. `reason` says which; `line` is the 1-based line, None where it is unknown."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def read_limited(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file of at most `limit` bytes.

    Not more than one byte beyond the limit is read, even from an endless device. Raises DocumentError for a longer
    file, and OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            size = path.stat()
            excess = f"is {size.st_size:,} bytes long" if stat.S_ISREG(size.st_mode) else "does not end"
            raise DocumentError(f"{excess}; at most {limit:,} bytes are read")
    return content


def checked_text(text: str) -> str:
    """Return `text` unchanged. Raises DocumentError if it is longer than a YAML file may be."""
    if len(text) > MAX_BYTES:
        raise DocumentError(f"is {len(text):,} characters long; at most {MAX_BYTES:,} are read")
    return text


class LimitedComposer:
    """Mixin for a PyYAML loader that limits the depth of nesting while the document is still being read."""

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
    """Check the size of a document once its aliases are filled in, without filling them in.

    The time grows with what is written, not with what it stands for. Raises DocumentError for more values or levels
    than the limits allow, and for a value that contains itself.
    """
    values, _ = _measure(root, 1, {})
    if values > MAX_VALUES:
        raise DocumentError(f"stands for {values:,} values once its aliases are filled in; at most {MAX_VALUES:,} are")


def _measure(node: yaml.Node, level: int, sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Return (values, levels) of the node. In `sizes` a node that is still being measured has None."""
    line = node.start_mark.line + 1
    if id(node) not in sizes:
        sizes[id(node)] = None
        entries = [] if isinstance(node.value, str) else node.value
        flat = (part for entry in entries for part in (entry if isinstance(entry, tuple) else (entry,)))
        if level > MAX_DEPTH:
            raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels once its aliases are filled in", line)
        parts = [_measure(part, level + 1, sizes) for part in flat]
        sizes[id(node)] = 1 + sum(values for values, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    size = sizes[id(node)]
    if size is None:
        raise DocumentError("a value contains itself (an alias inside its own anchor)", line)
    if level + size[1] - 1 > MAX_DEPTH:
        raise DocumentError(f"is nested deeper than {MAX_DEPTH} levels once its aliases are filled in", line)
    return size


def unshared(value: Any) -> Any:
    """Copy a value so that no two places hold the same list or mapping. The aliases of a document make such places."""
    if isinstance(value, dict):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list) else value


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document by PyYAML's own rules, within the limits.

    Raises:
        DocumentError: the document exceeds a limit, or holds a value that cannot be constructed.
        yaml.YAMLError: the text is not YAML.
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
    """Return the value of a composed document, with no part shared by two places. Raises what `load_yaml` raises."""
    import yaml

    if root is None:
        return None
    check_expanded(root)
    try:
        return unshared(loader.construct_document(root))
    except (yaml.YAMLError, DocumentError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # PyYAML's constructors do not check that a value fits its tag, such as !!bool or !!timestamp.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DocumentError(f"holds a value that its tag does not fit ({reason})") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON document. Raises ValueError if it is not JSON or is nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise DocumentError(_too_deep("so deep that it cannot be read")) from None
    brackets = (text.count(b"[") + text.count(b"{")) if isinstance(text, bytes) else text.count("[") + text.count("{")
    if brackets > MAX_JSON_DEPTH:  # fewer brackets cannot nest deeper
        depth = _depth_of(value)
        if depth > MAX_JSON_DEPTH:
            raise DocumentError(_too_deep(f"{depth} levels deep"))
    return value


def _too_deep(depth: str) -> str:
    return f"lists and objects inside one another, {depth}; at most {MAX_JSON_DEPTH} levels are read"


def _depth_of(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, dict | list):
            deepest = max(deepest, depth)
            waiting.extend((inner, depth + 1) for inner in (part.values() if isinstance(part, dict) else part))
    return deepest
