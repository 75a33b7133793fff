"""Prompts from files, with every broken row named; and functions named in a recipe, for rewards of your own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from tdpo.environments.base import Prompt
from tdpo.preferences import BadPreferences, Reason, RowProblem, Text, UnreadablePreferences
from tdpo.preferences.fields import check_template_options, check_text
from tdpo.preferences.formats import EXPECTED_PROMPTS, PROMPTS, nearest_column, require_prompt_column
from tdpo.preferences.prompts import prompt_findings
from tdpo.preferences.readers import read_source
from tdpo.preferences.reasons import Finding
from tdpo.preferences.rows import shown
from tdpo.preferences.text_files import Record
from tdpo.preferences.validation import OnBadRows

# Reward functions get these by keyword, and every other column of the prompts beside them.
ARGUMENTS = ("prompts", "completions")


@dataclass(frozen=True)
class PromptFile:
    """Sound prompts in file order; `problems` is non-empty only where bad rows were skipped."""

    prompts: list[Prompt]
    problems: list[RowProblem]
    source: str


def read_prompts(source: str | Path, *, split: str = "train", on_bad_rows: OnBadRows = "error") -> list[Prompt]:
    """The prompts of `load_prompts`, without what was skipped."""
    return load_prompts(source, split=split, on_bad_rows=on_bad_rows).prompts


def load_prompts(
    source: str | Path, *, split: str = "train", on_bad_rows: OnBadRows = "error", for_rewards: bool = True
) -> PromptFile:
    """Read and check the column `prompt` of every row of `source`; the other columns go to the reward functions.

    `source` and `split` are those of `tdpo.preferences.load_preferences`, and `source` may be a text file with a prompt
    a line. A prompt is named "file:row". Where no reward function gets the rows (`for_rewards=False`), columns may
    have any name, and texts and messages may stand side by side. Raises FileNotFoundError, UnreadablePreferences (the
    source as a whole: empty, no column `prompt`, a part of the prompt in another column, a column that reward functions
    cannot get), and BadPreferences (its rows, all at once; with `on_bad_rows="skip"` only if none is left).
    """
    if on_bad_rows not in ("error", "skip"):
        raise ValueError(f"on_bad_rows is {on_bad_rows!r}; it can be 'error' or 'skip'.")
    name = str(source)
    records, problems = _sorted_out(read_source(source, split, PROMPTS), name)
    total = len(records) + len({problem.row for problem in problems})
    if not total:
        raise UnreadablePreferences(f"{name}: there are no rows in it. {EXPECTED_PROMPTS}")
    if records:
        require_prompt_column([(record.row, record.values) for record in records], name)
        if for_rewards:
            refuse_reserved_columns([record.values for record in records], name)
    prompts, found = _check_rows(records, name, one_form=for_rewards)
    problems = sorted(problems + found, key=lambda problem: problem.row)
    if problems and (on_bad_rows == "error" or not prompts):
        hint = "" if records else "Not one record is an object with fields. Does the content fit the file's name?"
        raise BadPreferences(problems, name, total, hint, skippable=for_rewards)
    return PromptFile(prompts, problems, name)


def check_prompt_rows(rows: Sequence[tuple[int, Mapping[str, Any]]], source: str) -> list[Prompt]:
    """Prompts of numbered rows in memory, which get the checks of `load_prompts`, and its errors."""
    if rows:
        require_prompt_column(rows, source)
        refuse_reserved_columns([row for _, row in rows], source)
    prompts, problems = _check_rows([Record(*row) for row in rows], source, one_form=False)
    if problems:
        raise BadPreferences(problems, source, len(rows), skippable=False)
    return prompts


def _sorted_out(found: Iterable[Record | RowProblem], source: str) -> tuple[list[Record], list[RowProblem]]:
    """Records with fields, and the problems of all others."""
    records, problems = [], []
    for record in found:
        if isinstance(record, RowProblem):
            problems.append(record)
        elif isinstance(record.values, Mapping):
            records.append(record)
        else:
            text = f"{type(record.values).__name__}: {shown(record.values)}"
            problems.append(RowProblem(source, record.row, "row", Reason.NOT_OBJECT, text))
    return records, problems


def refuse_reserved_columns(rows: Iterable[Mapping[str, Any]], source: str) -> None:
    """Raise `UnreadablePreferences` for a column whose name reward functions get for something else."""
    given = {str(column) for row in rows for column in row}
    taken = [name for name in ARGUMENTS if name in given]
    if taken:
        raise UnreadablePreferences(
            f"{source}: the column {taken[0]!r} has the name of an argument that every reward function gets "
            "(prompts=, completions=); rename or remove it."
        )


def _check_rows(records: list[Record], source: str, *, one_form: bool) -> tuple[list[Prompt], list[RowProblem]]:
    prompts: list[tuple[int, Prompt]] = []
    problems: list[RowProblem] = []
    for record in records:
        try:
            text, columns, findings = _check_prompt(record.values)
        except RecursionError:
            text, columns, findings = None, {}, [Finding("row", Reason.TOO_DEEP, shown(record.values))]
        if text is not None and not findings:
            prompts.append((record.row, Prompt(f"{_short(source)}:{record.row}", text, columns)))
        problems += [RowProblem(source, record.row, *finding) for finding in findings]
    odd = _of_another_form(prompts) if one_form else set()
    problems += [
        RowProblem(source, row, "prompt", Reason.MIXED_FILE, shown(prompt.prompt))
        for row, prompt in prompts
        if row in odd
    ]
    return [prompt for row, prompt in prompts if row not in odd], problems


def _check_prompt(values: Mapping[str, Any]) -> tuple[Text | None, dict[str, Any], list[Finding]]:
    if "prompt" not in values:
        near = nearest_column("prompt", [str(key) for key in values])
        hint = f"; rename {near!r} to 'prompt'" if near else ""
        has = ", ".join(str(key) for key in values) or "no fields"
        return None, {}, [Finding("prompt", Reason.MISSING, f"the row has {has}{hint}")]
    text, findings = check_text("prompt", values["prompt"])
    columns = {str(key): value for key, value in values.items() if key != "prompt"}
    columns, found = check_template_options(columns, plain=isinstance(text, str))
    return text, columns, (findings or prompt_findings(text or "")) + found


def _of_another_form(prompts: list[tuple[int, Prompt]]) -> set[int]:
    """Rows in the form (plain text or messages) that fewer have: a file of both is two files mixed up."""
    plain = {row for row, prompt in prompts if isinstance(prompt.prompt, str)}
    messages = {row for row, _ in prompts} - plain
    return min(plain, messages, key=len)


def _short(source: str) -> str:
    """How a prompt's name begins: a file without its folders, a hub dataset as it is."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source


class FunctionError(ValueError):
    """A function that a recipe names cannot be had; the message says what was looked for and what was found."""


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `spec` names: "file.py:name" or "package.module:name".

    The file or module is imported, which runs it. Raises FunctionError: no such file, module or name, an error while
    importing, or something that cannot be called.
    """
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name.isidentifier()):
        raise FunctionError(f"{spec!r} names no function; expected file.py:name or package.module:name")
    module = _import_file(Path(place).expanduser(), spec) if place.endswith(".py") else _import_module(place, spec)
    if not hasattr(module, name):
        raise FunctionError(f"{spec}: {place} has no {name!r}{_nearest_functions(module, name)}")
    found = getattr(module, name)
    if inspect.isclass(found):
        raise FunctionError(f"{spec}: {name!r} is a class; name a function, or an instance that can be called")
    if not callable(found):
        raise FunctionError(f"{spec}: {name!r} cannot be called: it is {type(found).__name__} {shown(found)}")
    return found


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise FunctionError(
            f"{spec}: no such file {str(path)!r}{_nearest_files(path)} (looked in {path.parent.resolve()})"
        )
    # A name of its own: `reward.py` must not become what somebody else imports as `reward`.
    name = f"tdpo_function_in_{path.stem}_{crc32(str(path.resolve()).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None and found.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        found.loader.exec_module(module)
    except KeyboardInterrupt:
        sys.modules.pop(name, None)
        raise
    except BaseException as error:  # sys.exit too
        sys.modules.pop(name, None)
        raise FunctionError(_import_failed(spec, error, path)) from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise FunctionError(f"{spec}: {name!r} is neither a file ending in .py nor the name of a module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise FunctionError(_import_failed(spec, error, None)) from error
        file = Path(*name.split(".")).with_suffix(".py")
        hint = f"; the file {file} is named {file}:{spec.rpartition(':')[2]}" if file.is_file() else ""
        raise FunctionError(f"{spec}: there is no module {error.name!r} to import{hint}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too
        raise FunctionError(_import_failed(spec, error, None)) from error


def _import_failed(spec: str, error: BaseException, file: Path | None) -> str:
    """The error with the line of the user's file that it came from, or else of the place that raised it."""
    reason = f"{spec}: importing it raised {type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return reason  # a syntax error names its line itself
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file.resolve()]
    place = f"{file}, line {own[-1].lineno}" if own else f"{frames[-1].filename}, line {frames[-1].lineno}"
    return f"{reason} ({place})"


def _nearest_functions(module: ModuleType, name: str) -> str:
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; it has {', '.join(names[:8])}" if names else "; it has no functions"


def _nearest_files(path: Path) -> str:
    names = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(str(path.parent / name)) for name in near)}?" if near else ""
