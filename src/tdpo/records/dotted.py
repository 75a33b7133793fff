"""Nested mappings as they are stored, and by dotted keys."""

from __future__ import annotations

from typing import Any


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}. An empty mapping inside stays a value; what is no mapping has no entries."""
    flat: dict[str, Any] = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        name = f"{prefix}{key}"
        flat |= flatten(inner, f"{name}.") if isinstance(inner, dict) and inner else {name: inner}
    return flat


def at(mapping: Any, *keys: str) -> Any:
    """mapping[key][key]…, or None as soon as something on the way is missing or no mapping."""
    for key in keys:
        if not isinstance(mapping, dict):
            return None
        mapping = mapping.get(key)
    return mapping


def dict_at(mapping: Any, *keys: str) -> dict[str, Any]:
    """The mapping at these keys; an empty one where there is none."""
    value = at(mapping, *keys)
    return value if isinstance(value, dict) else {}


def text_at(mapping: Any, *keys: str) -> str:
    """The text at these keys; "" where there is none."""
    value = at(mapping, *keys)
    return value if isinstance(value, str) else ""
