"""YAML as people write it: `5e-4` is a number, only true and false are booleans, a key occurs once.

YAML 1.1, which PyYAML reads, makes text of `5e-4` (no dot), true of `yes` and `on`, 8 of `010` and 90 of `1:30`.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.reader import ReaderError

from ..guards.documents import DocumentError, LimitedComposer, check_expanded, checked_text, constructed
from ..guards.texts import escaped

_INT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_REPLACED = {"int", "float", "bool", "timestamp"}
MAX_DIGITS = 400

Positions = dict[tuple[str, ...], int]


class _Loader(LimitedComposer, yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, within limits."""


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MAX_DIGITS:
        line = node.start_mark.line + 1
        raise DocumentError(f"a whole number of {len(text)} digits; at most {MAX_DIGITS} are read", line)
    return int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan")
    if len(text) > MAX_DIGITS:
        line = node.start_mark.line + 1
        raise DocumentError(f"a number of {len(text)} characters; at most {MAX_DIGITS} are read", line)
    value = float(text)
    if math.isinf(value) and "inf" not in text:
        raise DocumentError(f"{text} is beyond the largest number there is (1.8e308)", node.start_mark.line + 1)
    return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {_tag(name) for name in _REPLACED}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_tag("bool"), _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(_tag("int"), _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_tag("float"), _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(_tag("int"), _construct_int)
_Loader.add_constructor(_tag("float"), _construct_float)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either dialect would read as something else."""


_Dumper.add_implicit_resolver(_tag("float"), _FLOAT, list("-+.0123456789"))


class YamlProblem(ValueError):
    """YAML that cannot be read: why, and at which 1-based line (None where it is not known)."""

    def __init__(self, reason: str, line: int | None = None, *, valid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason if valid else f"is not valid YAML: {reason}"
        self.line = line


def read_yaml(text: str) -> tuple[Any, Positions]:
    """The value that `text` holds and the 1-based line of every key and list entry, by its path.

    No two places of the value share a list or a mapping, whatever aliases were written.

    Raises:
        YamlProblem: it is no YAML, or beyond the limits of `guards.documents`.
    """
    try:
        return _read(checked_text(text))
    except DocumentError as error:
        raise YamlProblem(error.reason, error.line, valid=True) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlProblem(reason, mark.line + 1 if mark else None) from error
    except ReaderError as error:  # a control character
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"the character {escaped(chr(error.character))} may not stand in YAML", line) from error
    except yaml.YAMLError as error:
        raise YamlProblem(str(error).splitlines()[0] or type(error).__name__) from error


def _read(text: str) -> tuple[Any, Positions]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        positions: Positions = {}
        if node is not None:
            check_expanded(node)
            _walk(node, (), positions)
        return constructed(loader, node), positions
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[str, ...], positions: Positions) -> None:
    """Record the line of each key and of each entry of a list; refuse keys that occur twice."""
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            positions[(*path, str(number))] = entry.start_mark.line + 1
            _walk(entry, (*path, str(number)), positions)
    if not isinstance(node, yaml.MappingNode):
        return
    line_of: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in line_of:
            dotted = ".".join((*path, key))
            raise YamlProblem(f"{dotted} is given twice, first in line {line_of[key]}; keep one", line)
        line_of[key] = positions[(*path, key)] = line
        _walk(value_node, (*path, key), positions)


def write_yaml(value: Any) -> str:
    """`value` as YAML, in the order given, such that `read_yaml` gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
