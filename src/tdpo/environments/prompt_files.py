"""Prompts from files, with every broken row named; and functions named in a recipe, for rewards of your own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdpo.environments.base import Prompt
from tdpo.preferences import BadPreferences, Reason, RowProblem, Text, UnreadablePreferences
from tdpo.preferences.fields import check_template_options, check_text
from tdpo.preferences.formats import EXPECTED_PROMPTS, PROMPTS, nearest_column, require_prompt_column
from tdpo.preferences.readers import read_source
from tdpo.preferences.reasons import Finding
from tdpo.preferences.role_order import prompt_findings
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
