"""Reading and checking of prompts from files; errors name every broken row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdpo.environments.environment import Prompt
from tdpo.preferences import BadPreferences, Reason, RowProblem, Text, UnreadablePreferences
from tdpo.preferences.fields import check_template_options, check_text
from tdpo.preferences.formats import EXPECTED_PROMPTS, PROMPTS, nearest_column, require_prompt_column
from tdpo.preferences.readers import read_source
from tdpo.preferences.reasons import Finding
from tdpo.preferences.role_order import prompt_findings
from tdpo.preferences.rows import shown
from tdpo.preferences.text_files import Record
from tdpo.preferences.validation import OnBadRows, separate_records

# Keyword arguments of every reward function. The other columns of the prompts come beside them.
ARGUMENTS = ("prompts", "completions")


@dataclass(frozen=True)
class PromptFile:
    """Valid prompts in the order of the file. `problems` is empty unless bad rows were skipped."""

    prompts: list[Prompt]
    problems: list[RowProblem]
    source: str


def read_prompts(source: str | Path, *, split: str = "train", on_bad_rows: OnBadRows = "error") -> list[Prompt]:
    """Return the prompts of `load_prompts`, without the problems of skipped rows."""
    return load_prompts(source, split=split, on_bad_rows=on_bad_rows).prompts


def load_prompts(
    source: str | Path, *, split: str = "train", on_bad_rows: OnBadRows = "error", for_rewards: bool = True
) -> PromptFile:
    """Read and check the column `prompt` of every row of `source`; the other columns go to the reward functions.

    `source` and `split` are those of `tdpo.preferences.load_preferences`; `source` may also be a text file with one
    prompt per line. The id of a prompt is "file:row". Where no reward function gets the rows (`for_rewards=False`),
    columns may have any name, and a file may mix texts and messages.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UnreadablePreferences: the source is empty, has no column `prompt`, has a part of the prompt in another column,
            or has a column with the name of an argument of reward functions.
        BadPreferences: rows are broken; it names all of them. With `on_bad_rows="skip"` it is raised only if no usable
            row is left.
    """
    if on_bad_rows not in ("error", "skip"):
        raise ValueError(f"on_bad_rows is {on_bad_rows!r}; it can be 'error' or 'skip'.")
    name = str(source)
    records, problems = separate_records(read_source(source, split, PROMPTS), name)
    total = len(records) + len({problem.row for problem in problems})
    if not total:
        raise UnreadablePreferences(f"{name}: there are no rows in it. {EXPECTED_PROMPTS}")
    if records:
        require_prompt_column([(record.row, record.values) for record in records], name)
        if for_rewards:
            refuse_reserved_columns([record.values for record in records], name)
    prompts, row_problems = _check_rows(records, name, one_form=for_rewards)
    problems = sorted(problems + row_problems, key=lambda problem: problem.row)
    if problems and (on_bad_rows == "error" or not prompts):
        hint = "" if records else "Not one record is an object with fields. Does the content fit the file's name?"
        raise BadPreferences(problems, name, total, hint, skippable=for_rewards)
    return PromptFile(prompts, problems, name)


def check_prompt_rows(rows: Sequence[tuple[int, Mapping[str, Any]]], source: str) -> list[Prompt]:
    """Return the prompts of numbered rows in memory. The checks and the errors are those of `load_prompts`."""
    if rows:
        require_prompt_column(rows, source)
        refuse_reserved_columns([row for _, row in rows], source)
    prompts, problems = _check_rows([Record(*row) for row in rows], source, one_form=False)
    if problems:
        raise BadPreferences(problems, source, len(rows), skippable=False)
    return prompts


def refuse_reserved_columns(rows: Iterable[Mapping[str, Any]], source: str) -> None:
    """Raise `UnreadablePreferences` for a column that has the name of an argument of reward functions."""
    columns = {str(column) for row in rows for column in row}
    reserved = [name for name in ARGUMENTS if name in columns]
    if reserved:
        raise UnreadablePreferences(
            f"{source}: the column {reserved[0]!r} has the name of an argument that every reward function gets "
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
    other_form = _rows_of_the_rarer_form(prompts) if one_form else set()
    problems += [
        RowProblem(source, row, "prompt", Reason.MIXED_FILE, shown(prompt.prompt))
        for row, prompt in prompts
        if row in other_form
    ]
    return [prompt for row, prompt in prompts if row not in other_form], problems


def _check_prompt(values: Mapping[str, Any]) -> tuple[Text | None, dict[str, Any], list[Finding]]:
    if "prompt" not in values:
        near = nearest_column("prompt", [str(key) for key in values])
        hint = f"; rename {near!r} to 'prompt'" if near else ""
        has = ", ".join(str(key) for key in values) or "no fields"
        return None, {}, [Finding("prompt", Reason.MISSING, f"the row has {has}{hint}")]
    text, findings = check_text("prompt", values["prompt"])
    columns = {str(key): value for key, value in values.items() if key != "prompt"}
    columns, option_findings = check_template_options(columns, plain=isinstance(text, str))
    return text, columns, (findings or prompt_findings(text or "")) + option_findings


def _rows_of_the_rarer_form(prompts: list[tuple[int, Prompt]]) -> set[int]:
    """Return the rows in the form, plain text or messages, that fewer rows have.

    A file with both is two files mixed up.
    """
    plain = {row for row, prompt in prompts if isinstance(prompt.prompt, str)}
    messages = {row for row, _ in prompts} - plain
    return min(plain, messages, key=len)


def _short(source: str) -> str:
    """The first part of a prompt's id: the name of a file without its folders, or the name of a hub dataset."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source
