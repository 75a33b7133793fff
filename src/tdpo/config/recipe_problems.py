"""What is wrong with a recipe: pydantic's errors in the words of its keys, each with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..guards.texts import printable, why_no_plain_text
from ._explain import COUNTERPARTS, advice, expected, fields, got, meaning, nearest_key, why_not_here
from ._sections import Section
from .schema import Recipe

Path_ = tuple[str, ...]
MOST_PROBLEMS = 100  # that are explained: a person reads no more, and each takes a search for the key that was meant


@dataclass(frozen=True)
class RecipeProblem:
    """One thing wrong with a recipe: its dotted key ("" for the file), why, and where it was written."""

    key: str
    reason: str
    where: str

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.where, self.key, self.reason) if part))


class RecipeError(ValueError):
    """A recipe that cannot be used; `problems` are all that were found in it."""

    def __init__(self, problems: Sequence[RecipeProblem], what: str = "recipe") -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"the {what} has {count}:\n{lines}")


@dataclass(frozen=True)
class Context:
    """What an error message is made from: the schema, the values, where each key was written, and the source's name."""

    schema: type[Section]
    values: dict[str, Any]
    where: dict[Path_, str]
    name: str

    def place(self, path: Path_) -> str:
        """The place of a key, or else of a key inside it, or of the nearest section around it."""
        inside = [place for key, place in self.where.items() if path and key[: len(path)] == path]
        if path in self.where or inside:
            return self.where.get(path) or inside[0]
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in self.where:
                return self.where[path[:length]]
        return self.name


def problems_of(error: ValidationError, context: Context) -> Iterator[RecipeProblem]:
    """The problems of a recipe that does not validate, `MOST_PROBLEMS` errors of pydantic's at most."""
    errors = error.errors()
    for details in errors[:MOST_PROBLEMS]:
        yield from _explain(details, context)
    if len(errors) > MOST_PROBLEMS:
        yield RecipeProblem("", f"has {len(errors) - MOST_PROBLEMS} more problems", context.name)


def _explain(details: ErrorDetails, context: Context) -> list[RecipeProblem]:
    """An error of pydantic in the words of the recipe.

    pydantic's location of a value in a union ends in the names of the union's types, which no user wrote.
    """
    known_fields = dict(fields(context.schema))
    path = tuple(str(part) for part in details["loc"])
    if details["type"] == "key_problems":
        conflicts = details["ctx"]["problems"]
        return [RecipeProblem(key, reason, context.place(_path_of(key))) for key, reason in conflicts]
    if details["type"] in ("extra_forbidden", "invalid_key"):  # the latter: a key that is a number
        return [_unknown_key(path, context)]
    while path and _generic(path) not in known_fields:
        path = path[:-1]
    key, field = _dotted(path), known_fields[_generic(path)]
    if details["type"] == "missing":
        if _meant_for_ppo(path, context):
            return []
        reason = f"is missing; expected {expected(field)}: {meaning(field)}"
        return [RecipeProblem(key, reason, context.place(path[:-1]))]
    if details["type"] == "string_unicode":
        return [RecipeProblem(key, why_no_plain_text(str(details["input"])) or "is no text", context.place(path))]
    if details["type"] == "value_error":
        return [RecipeProblem(key, str(details["ctx"]["error"]), context.place(path))]
    value = _get(context.values, path)
    entry = _which_entry(details["loc"][len(path) :], value) if get_origin(field.annotation) is list else ""
    reason = f"expected {expected(field)}, got {got(value)}{entry}{advice(key, value, field)}"
    return [RecipeProblem(key, reason, context.place(path))]


def _which_entry(inside: Sequence[int | str], value: Any) -> str:
    """The wrong entry of a list with its number from 1; "" where the list has one entry, or it cannot be told."""
    place = next((part for part in inside if isinstance(part, int)), None)
    if not isinstance(value, list) or place is None or len(value) < 2:
        return ""
    return f" (entry {place + 1}: {got(value[place])})"


def _meant_for_ppo(path: Path_, context: Context) -> bool:
    """Whether the section at `path` is missing only because a PPO recipe lacks its section `ppo`, which is said too."""
    is_foreign = any(key in COUNTERPARTS[Recipe] for key in context.values)
    return context.schema is Recipe and path == ("data",) and is_foreign


def _unknown_key(path: Path_, context: Context) -> RecipeProblem:
    key, place = _dotted(path), context.place(path)
    elsewhere = why_not_here(key, context.schema)
    if elsewhere is not None:
        return RecipeProblem(key, elsewhere, place)
    meant = nearest_key(_generic(path), context.schema)
    if meant:
        if _section(meant) == _section(_generic(path)):
            meant = meant.replace(_section(meant), _section(key), 1)  # the entry of the list that it was
        return RecipeProblem(key, f"unknown key; did you mean {meant}?", place)
    section = _section(_generic(path))
    here = [name.rpartition(".")[2] for name, _ in fields(context.schema) if _section(name) == section]
    return RecipeProblem(key, f"unknown key; known here: {', '.join(here)}", place)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _dotted(path: Path_) -> str:
    """The path as a person reads it, such as rewards[0].weight."""
    return _join(path, "[{}]")


def _path_of(key: str) -> Path_:
    """The path of a key as `_dotted` writes it."""
    return tuple(key.replace("[", ".").replace("]", "").split("."))


def _generic(path: Path_) -> str:
    """The path as `fields` names it, such as rewards[].weight."""
    return _join(path, "[]")


def _join(path: Path_, number: str) -> str:
    joined = ""
    for depth, part in enumerate(path):
        joined += number.format(part) if depth and part.isdecimal() else f"{'.' if joined else ''}{part}"
    return joined


def _get(values: Any, path: Path_) -> Any:
    for part in path:
        if isinstance(values, list):
            values = values[int(part)]
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values
