"""From a YAML file and dotted overrides to a recipe or a study, or to all that is wrong with them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..guards.documents import DocumentError, read_limited
from ..guards.texts import printable, why_no_plain_text
from ..records import dotted
from ..records.names import RECIPE_FILE, STUDY_FILE
from ._explain import (
    COUNTERPARTS,
    advice,
    expected,
    fields,
    got,
    meaning,
    nearest_key,
    schema_of,
    shorten,
    why_not_here,
)
from ._sections import Section
from ._yaml import YamlProblem, read_yaml, write_yaml
from .ppo_schema import PPORecipe
from .schema import Recipe
from .study_schema import Study

AnyRecipe = Recipe | PPORecipe
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
    """A recipe that cannot be used, with every problem found."""

    def __init__(self, problems: Sequence[RecipeProblem], what: str = "recipe") -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"the {what} has {count}:\n{lines}")


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read and validate a recipe: one for PPO if it has a section `ppo`, otherwise one for preferences.

    `source` is a YAML file, a run directory (its recipe.yaml), or a mapping; `overrides` are `section.key=value`
    with YAML values and win over the file. Raises `RecipeError` with all problems, each with file and line.
    """
    values, where, name, problems = _given(source, overrides, RECIPE_FILE)
    if "arms" in values:
        reason = f"is a study (it has arms), not the recipe of one run: `tdpo compare {name}`"
        raise RecipeError([RecipeProblem("", reason, name)])
    recipe = _validated(schema_of(values), _Context(schema_of(values), values, where, name), problems)
    assert isinstance(recipe, Recipe | PPORecipe)
    return recipe


def load_study(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study, as `load_recipe` does a recipe; `source` may be a study's folder (its study.yaml)."""
    values, where, name, problems = _given(source, overrides, STUDY_FILE)
    if "run_dir" in values:
        command = "ppo" if schema_of(values) is PPORecipe else "train"
        reason = f"is the recipe of one run, not a study (it has no arms): `tdpo {command} {name}`"
        raise RecipeError([RecipeProblem("", reason, name)], "study")
    study = _validated(Study, _Context(Study, values, where, name), problems)
    assert isinstance(study, Study)
    return study


def _given(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], file: str
) -> tuple[dict[str, Any], dict[Path_, str], str, list[RecipeProblem]]:
    """The values with the overrides in them, where each was written, the source's name, and what cannot be read."""
    values, lines, name = _read(source, file)
    where = {path: f"{name}:{line}" for path, line in lines.items()}
    problems = _apply_overrides(values, overrides, where)
    return values, where, name, problems


def _validated(schema: type[Section], context: _Context, problems: list[RecipeProblem]) -> Section:
    try:
        section = schema.model_validate(context.values)
    except ValidationError as error:
        errors = error.errors()
        problems += [p for details in errors[:MOST_PROBLEMS] for p in _explain(details, context)]
        if len(errors) > MOST_PROBLEMS:
            problems.append(RecipeProblem("", f"has {len(errors) - MOST_PROBLEMS} more problems", context.name))
    if problems:
        raise RecipeError(sorted(dict.fromkeys(problems), key=_by_line), "study" if schema is Study else "recipe")
    return section


@dataclass(frozen=True)
class _Context:
    """What an error message is made from: the schema, what was given, and where each key of it was written."""

    schema: type[Section]
    values: dict[str, Any]
    where: dict[Path_, str]
    name: str

    def place(self, path: Path_) -> str:
        """Where the key, or else what is inside it, or the nearest section around it, was written."""
        inside = [place for written, place in self.where.items() if path and written[: len(path)] == path]
        if path in self.where or inside:
            return self.where.get(path) or inside[0]
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in self.where:
                return self.where[path[:length]]
        return self.name


def _by_line(problem: RecipeProblem) -> int:
    line = problem.where.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def dump_recipe(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML that `load_recipe` turns back into the same recipe."""
    return write_yaml(recipe.model_dump())


def dump_study(study: Study) -> str:
    """The resolved study as YAML that `load_study` turns back into the same study."""
    values = study.model_dump()
    del values["ppo"]["iterations"]  # follows from the budget
    for key in study.idle_sections:
        del values[key]
    if study.claims is None:
        del values["claims"]  # the built-in ones
    return write_yaml(values)


def flatten(recipe: AnyRecipe | Study) -> dict[str, Any]:
    """Every value of the recipe by its dotted key."""
    return dotted.flatten(recipe.model_dump())


def _read(
    source: str | Path | Mapping[str, Any], file: str = RECIPE_FILE
) -> tuple[dict[str, Any], dict[Path_, int], str]:
    if isinstance(source, Mapping):
        return deepcopy(dict(source)), {}, ""
    path = _file_at(source, file)
    name = str(path)
    try:
        values, lines = read_yaml(_text_of(path))
    except YamlProblem as problem:
        place = name if problem.line is None else f"{name}:{problem.line}"
        raise RecipeError([RecipeProblem("", problem.reason, place)]) from problem
    if values is None:
        values = {}
    if not isinstance(values, dict):
        reason = f"expected sections such as `loss:` with keys, got {got(values)}"
        raise RecipeError([RecipeProblem("", reason, name)])
    return values, lines, name


def _file_at(source: str | Path, file: str) -> Path:
    """The file itself, or the one called `file` where `source` is a folder. Raises RecipeError for what is no path."""
    path = Path(source)
    try:
        return path / file if path.is_dir() else path
    except (OSError, ValueError) as error:  # a name that is too long, or in a folder that must not be read
        raise _unreadable(path, error) from None


def _text_of(path: Path) -> str:
    """The text of a recipe's file. Raises RecipeError where it cannot be had."""
    try:
        content = read_limited(path)
    except FileNotFoundError:
        raise RecipeError([RecipeProblem("", _missing_file(path), str(path))]) from None
    except DocumentError as error:
        raise RecipeError([RecipeProblem("", error.reason, str(path))]) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}); a recipe is a YAML file"
        raise RecipeError([RecipeProblem("", reason, str(path))]) from None


def _unreadable(path: Path, error: Exception) -> RecipeError:
    why = error.strerror if isinstance(error, OSError) else str(error)  # ValueError: a NUL in the name
    return RecipeError([RecipeProblem("", f"cannot be read: {why}", str(path))])


def _missing_file(path: Path) -> str:
    beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    if beside:
        return f"does not exist; YAML files in that folder: {', '.join(beside[:8])}"
    return "does not exist; `tdpo recipe --example preferences` prints a recipe to start from"


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str], where: dict[Path_, str]) -> list[RecipeProblem]:
    """Write the overrides into `values` and their origin into `where`; returns those that cannot be read."""
    problems: list[RecipeProblem] = []
    seen: set[str] = set()
    for text in overrides:
        key, equals, raw = text.partition("=")
        place = f"override {shorten(text)!r}"
        reason = None
        if not equals or not key.strip("."):
            reason = "expected section.key=value, for instance loss.beta=0.2"
        elif not raw.strip():
            reason = "has no value; write null to clear a key"
        elif key in seen:
            reason = f"{key} is overridden twice; keep one"
        if reason is None:
            seen.add(key)
            try:
                _put(values, tuple(key.split(".")), read_yaml(raw)[0])
            except YamlProblem as problem:
                reason = f"{problem.reason}; quote the value for the shell"
            except _NotASection as clash:
                reason = f"{clash} is a value, not a section, so it has no key {key.rpartition('.')[2]!r}"
            where[tuple(key.split("."))] = place
        if reason is not None:
            problems.append(RecipeProblem("", reason, place))
    return problems


class _NotASection(Exception):
    pass


def _put(values: dict[str, Any], path: Path_, value: Any) -> None:
    for depth, part in enumerate(path[:-1], start=1):
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise _NotASection(".".join(path[:depth]))
        values = inner
    values[path[-1]] = value


def _explain(details: ErrorDetails, context: _Context) -> list[RecipeProblem]:
    """pydantic's error in our words. Locations of unions end in names of their arms, which no user wrote."""
    known = dict(fields(context.schema))
    path = tuple(str(part) for part in details["loc"])
    if details["type"] == "key_problems":
        conflicts = details["ctx"]["problems"]
        return [RecipeProblem(key, reason, context.place(_path_of(key))) for key, reason in conflicts]
    if details["type"] in ("extra_forbidden", "invalid_key"):  # the latter: a key that is a number
        return [_unknown_key(path, context)]
    while path and _generic(path) not in known:
        path = path[:-1]
    key, field = _dotted(path), known[_generic(path)]
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
    """Which entry of a list is wrong, where the list is long enough to ask: its place, counted from 1, and itself."""
    place = next((part for part in inside if isinstance(part, int)), None)
    if not isinstance(value, list) or place is None or len(value) < 2:
        return ""
    return f" (entry {place + 1}: {got(value[place])})"


def _meant_for_ppo(path: Path_, context: _Context) -> bool:
    """Whether a missing section is missing only because its recipe lacks the section `ppo`, which is said elsewhere."""
    is_foreign = any(key in COUNTERPARTS[Recipe] for key in context.values)
    return context.schema is Recipe and path == ("data",) and is_foreign


def _unknown_key(path: Path_, context: _Context) -> RecipeProblem:
    key, place = _dotted(path), context.place(path)
    elsewhere = why_not_here(key, context.schema)
    if elsewhere is not None:
        return RecipeProblem(key, elsewhere, place)
    meant = nearest_key(_generic(path), context.schema)
    if meant:
        if _section(meant) == _section(_generic(path)):
            meant = meant.replace(_section(meant), _section(key), 1)  # the entry of the list that it was
        return RecipeProblem(key, f"unknown key; did you mean {meant}?", place)
    here = [
        known.rpartition(".")[2] for known, _ in fields(context.schema) if _section(known) == _section(_generic(path))
    ]
    return RecipeProblem(key, f"unknown key; known here: {', '.join(here)}", place)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _dotted(path: Path_) -> str:
    """The path as a person reads it: rewards[0].weight."""
    return _join(path, "[{}]")


def _path_of(key: str) -> Path_:
    """The path of a key as `_dotted` writes it."""
    return tuple(key.replace("[", ".").replace("]", "").split("."))


def _generic(path: Path_) -> str:
    """The path as `fields` names it: rewards[].weight."""
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
