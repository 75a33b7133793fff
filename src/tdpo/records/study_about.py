"""What about.json says of a study's tasks and arms: one schema for who writes it and who reads it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

Facts = TypeVar("Facts", "TaskFacts", "ArmFacts")


@dataclass(frozen=True)
class TaskFacts:
    """One task; None where the file does not say. `threshold` is the reward from which on a response is good."""

    name: str
    kind: str | None = None
    description: str | None = None
    reward: str | None = None
    threshold: float | None = None
    modes: list[str] | None = None
    max_new_tokens: int | None = None
    prompts: int | None = None
    samples_per_prompt: int | None = None
    left_out: list[str] | None = None


@dataclass(frozen=True)
class ArmFacts:
    """One arm: what people call it, what it does, what its strengths are, and their values as text."""

    name: str
    label: str | None = None
    what: str | None = None
    strength: str | None = None
    strengths: list[str] | None = None


def read_facts(kind: type[Facts], entries: Any) -> dict[str, Facts]:
    """The entries of a list of about.json by their names, as far as they have the shape of `kind`.

    A value of another type than the schema's is left out; entries without a name are, too.
    """
    facts = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"]:
            values = {f.name: entry[f.name] for f in fields(kind) if _fits(entry.get(f.name), str(f.type))}
            facts[entry["name"]] = kind(**values)
    return facts


def _fits(value: Any, annotation: str) -> bool:
    if annotation.startswith("list"):
        return isinstance(value, list)
    if annotation.startswith("str"):
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool)
