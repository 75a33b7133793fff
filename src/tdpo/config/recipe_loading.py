"""Reads a YAML file with dotted overrides as a recipe or a study, or reports all that is wrong with it at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..guards.documents import DocumentError, read_limited
from ..records import dotted
from ..records.names import RECIPE_FILE, STUDY_FILE
from ._explain import got, schema_of, shorten
from ._sections import Section
from ._yaml import YamlProblem, read_yaml, write_yaml
from .implied_overrides import drop_replaced, loss_of
from .online_schema import OnlineRecipe
from .ppo_schema import PPORecipe
from .recipe_problems import Context, Path_, RecipeError, RecipeProblem, problems_of
from .schema import Recipe
from .study_schema import Study

OwnResponsesRecipe = PPORecipe | OnlineRecipe
AnyRecipe = Recipe | OwnResponsesRecipe
logger = logging.getLogger(__name__)


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    say: Callable[[str], None] = logger.info,
    replaces: bool = True,
) -> AnyRecipe:
    """Read and validate a recipe: one for PPO if it has a section `ppo`, one on pairs of own responses if it has a
    section `online`, otherwise one for preferences.

    Args:
        source: a YAML file, a run directory (its recipe.yaml), or a mapping.
        overrides: `section.key=value` with YAML values; they win over the file.
        say: told which keys of the file go because an override leaves them without a meaning.
        replaces: whether such keys go. Otherwise they are problems.

    Raises:
        RecipeError: all problems, each with file and line.
    """
    values, where, name, problems = _read_with_overrides(source, overrides, RECIPE_FILE, say if replaces else None)
    if "arms" in values:
        reason = f"is a study (it has arms), not the recipe of one run: `tdpo compare {name}`"
        raise RecipeError([RecipeProblem("", reason, name)])
    recipe = _validated(schema_of(values), Context(schema_of(values), values, where, name), problems)
    assert isinstance(recipe, AnyRecipe)
    return recipe


def load_study(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, say: Callable[[str], None] = logger.info
) -> Study:
    """Read and validate a study, as `load_recipe` does a recipe; `source` may be a study's folder (its study.yaml)."""
    values, where, name, problems = _read_with_overrides(source, overrides, STUDY_FILE, say)
    if "run_dir" in values:
        command = "ppo" if schema_of(values) is PPORecipe else "train"
        reason = f"is the recipe of one run, not a study (it has no arms): `tdpo {command} {name}`"
        raise RecipeError([RecipeProblem("", reason, name)], "study")
    study = _validated(Study, Context(Study, values, where, name), problems)
    assert isinstance(study, Study)
    return study


def _read_with_overrides(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str], file: str, say: Callable[[str], None] | None
) -> tuple[dict[str, Any], dict[Path_, str], str, list[RecipeProblem]]:
    """The values with the overrides in them, the place of each, the source's name, and what is wrong with overrides."""
    values, lines, name = read_values(source, file)
    where = {path: f"{name}:{line}" for path, line in lines.items()}
    loss = loss_of(values)
    problems = _apply_overrides(values, overrides, where)
    if say is not None:
        for sentence in drop_replaced(values, loss, {text.partition("=")[0] for text in overrides}):
            say(sentence)
    return values, where, name, problems


def _validated(schema: type[Section], context: Context, problems: list[RecipeProblem]) -> Section:
    try:
        section = schema.model_validate(context.values)
    except ValidationError as error:
        problems += problems_of(error, context)
    if problems:
        raise RecipeError(sorted(dict.fromkeys(problems), key=_by_line), "study" if schema is Study else "recipe")
    return section


def _by_line(problem: RecipeProblem) -> int:
    line = problem.where.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def dump_recipe(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML that `load_recipe` turns back into the same recipe."""
    return write_yaml(recipe.model_dump())


def dump_study(study: Study) -> str:
    """The resolved study as YAML that `load_study` turns back into the same study."""
    values = study.model_dump()
    for section in ("online", "ppo"):
        del values[section]["iterations"]  # follows from the budget
    for key in study.idle_sections:
        del values[key]
    if study.claims is None:
        del values["claims"]  # the built-in ones
    if study.questions is None:
        del values["questions"]
    return write_yaml(values)


def flatten(recipe: AnyRecipe | Study) -> dict[str, Any]:
    """Every value of the recipe by its dotted key."""
    return dotted.flatten(recipe.model_dump())


def read_values(
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
    """`source`, or the file `file` in it where it is a folder. Raises RecipeError for what is no path."""
    path = Path(source)
    try:
        return path / file if path.is_dir() else path
    except (OSError, ValueError) as error:  # a name that is too long, or in a folder that must not be read
        raise _unreadable(path, error) from None


def _text_of(path: Path) -> str:
    """The text of a recipe's file. Raises RecipeError where it cannot be read."""
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
    """Write the overrides into `values` and their places into `where`; returns what is wrong with them."""
    problems: list[RecipeProblem] = []
    overridden: set[str] = set()
    for text in overrides:
        key, equals, raw = text.partition("=")
        place = f"override {shorten(text)!r}"
        reason = None
        if not equals or not key.strip("."):
            reason = "expected section.key=value, for instance loss.beta=0.2"
        elif not raw.strip():
            reason = "has no value; write null to clear a key"
        elif key in overridden:
            reason = f"{key} is overridden twice; keep one"
        if reason is None:
            overridden.add(key)
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
