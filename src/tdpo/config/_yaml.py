"""YAML as people write it: `5e-4` is a number, only true and false are booleans, a key occurs once.

YAML 1.1, which PyYAML reads, makes text of `5e-4` (no dot), true of `yes` and `on`, 8 of `010` and 90 of `1:30`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_INT = re.compile(r"^[-+]?[0-9]+(?:_[0-9]+)*$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_REPLACED = {"int", "float", "bool", "timestamp"}

Positions = dict[tuple[str, ...], int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


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

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def read_yaml(text: str) -> tuple[Any, Positions]:
    """The value that `text` holds and the 1-based line of every key and list entry, by its path."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        positions: Positions = {}
        _walk(node, (), positions, frozenset())
        return loader.construct_document(node), positions
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlProblem(reason, mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, YamlProblem):
            raise
        raise YamlProblem(str(error).splitlines()[0] or type(error).__name__) from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[str, ...], positions: Positions, above: frozenset[int]) -> None:
    """Record the line of each key and of each entry of a list; refuse keys that occur twice and values that contain
    themselves."""
    if id(node) in above:
        raise YamlProblem("a value contains itself (an alias inside its own anchor)", node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            positions[(*path, str(number))] = entry.start_mark.line + 1
            _walk(entry, (*path, str(number)), positions, above | {id(node)})
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            dotted = ".".join((*path, key))
            raise YamlProblem(f"{dotted} is given twice, first in line {seen[key]}; keep one", line)
        seen[key] = positions[(*path, key)] = line
        _walk(value_node, (*path, key), positions, above | {id(node)})


def write_yaml(value: Any) -> str:
    """`value` as YAML, in the order given, such that `read_yaml` gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
