"""A recipe that was made of another program's settings, and its YAML with a remark wherever the two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import flatten, load_recipe, write_yaml


@dataclass
class Converted:
    """A recipe made of TRL's settings.

    Attributes:
        name: of the file that it was made from.
        values, remarks: by dotted key.
        lost: what no key takes over, each in a sentence with its place.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The recipe as YAML, with remarks as comments."""
        head = [f"Made from {self.name} by `tdpo recipe --from-trl`. What that file leaves out has TRL's default here."]
        if self.lost:
            head += ["Not taken over:", *(f"- {sentence}" for sentence in self.lost)]
        order = {part: place for place, key in reversed([*enumerate(recipe_defaults())]) for part in _outward(key)}
        # Keys of a section that is null by default stand where the section does.
        places = {key: next(order[part] for part in reversed(_outward(key)) if part in order) for key in self.values}
        ordered = dict(sorted(self.values.items(), key=lambda item: places[item[0]]))
        return "".join(f"# {line}\n" for line in head) + _commented(nested(ordered), self.remarks)


def recipe_defaults() -> dict[str, Any]:
    """Every key with the value that it has in a recipe which leaves it out, in the order of the file."""
    return flatten(load_recipe({"run_dir": "x", "data": {"train": "x"}}))


def _outward(key: str) -> list[str]:
    """A key and the sections around it."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as sections in sections."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        section = sections
        *outer, last = key.split(".")
        for part in outer:
            section = section.setdefault(part, {})
        section[last] = value
    return sections


def _commented(values: Mapping[str, Any], remarks: Mapping[str, str], path: str = "", indent: str = "") -> str:
    """YAML in which the line of a key ends in its remark."""
    text = ""
    for name, value in values.items():
        key = f"{path}{name}"
        if isinstance(value, dict):
            text += f"{indent}{name}:\n" + _commented(value, remarks, f"{key}.", indent + "  ")
            continue
        text += f"{indent}{name}: {shown(value)}" + (f"  # {remarks[key]}" if key in remarks else "") + "\n"
    return text


def shown(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    return write_yaml([value]).strip().removeprefix("- ")
