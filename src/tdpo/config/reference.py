"""The reference of all keys of a recipe, made from the schema: docs/recipe.md and `tdpo recipe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from ._explain import expected, fields, meaning, section_of
from .schema import Section

HEADER = """# The recipe

One YAML file describes a run. Only `run_dir` and `data.train` have no default. Any key can be overridden on the
command line by its dotted name, `tdpo train recipe.yaml loss.beta=0.2 model.lora=null`, where the value is YAML.
A key that is unknown, of the wrong type, out of range, or without effect beside the others is refused before
anything loads. The resolved recipe, with every default filled in, is the first file of the run directory.

Made from the schema: `tdpo recipe --markdown > docs/recipe.md`.
"""


@dataclass(frozen=True)
class KeyReference:
    """One key of the recipe: dotted name, default ("required" without one), accepted values, meaning."""

    key: str
    default: str
    expected: str
    meaning: str
    is_section: bool


def recipe_reference() -> list[KeyReference]:
    """Every key, sections before their keys, in the order of a recipe."""
    return [
        KeyReference(
            key=key,
            default=_shown(field.default),
            expected=expected(field),
            meaning=meaning(field),
            is_section=section_of(field) is not None,
        )
        for key, field in fields()
    ]


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Section):
        return ""
    return str(default)


def recipe_markdown() -> str:
    """The text of docs/recipe.md."""
    rows = recipe_reference()
    sections = [row for row in rows if row.is_section]
    parts = [HEADER, _table([r for r in rows if "." not in r.key and not r.is_section])]
    for section in sections:
        keys = [r for r in rows if r.key.rpartition(".")[0] == section.key and not r.is_section]
        parts.append(f"## {section.key}\n{section.meaning}\n\n{_table(keys)}")
    return "\n".join(parts)


def _table(rows: list[KeyReference]) -> str:
    lines = ["| key | default | accepts | meaning |", "|---|---|---|---|"]
    lines += [f"| `{r.key}` | {r.default} | {r.expected} | {r.meaning} |" for r in rows]
    return "\n".join(lines) + "\n"
