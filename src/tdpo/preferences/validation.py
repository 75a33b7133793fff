"""Validation of records: those that can be trained on become preference rows, all others become problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from tdpo.preferences.fields import FINISHED, check_options, check_text
from tdpo.preferences.formats import nearest_column, require_preference_columns
from tdpo.preferences.implicit import require_shared_prompts
from tdpo.preferences.prompt_splitting import resolve
from tdpo.preferences.reasons import Finding, Reason
from tdpo.preferences.role_order import order_findings
from tdpo.preferences.rows import (
    BadPreferences,
    PreferenceRow,
    Preferences,
    RowProblem,
    UnreadablePreferences,
    shown,
)
from tdpo.preferences.text_files import Record

OnBadRows = Literal["error", "skip"]
RepeatedRows = Literal["refuse", "keep"]

_CANONICAL = json.JSONEncoder(sort_keys=True, default=str)


def separate_records(rows: Iterable[Record | RowProblem], source: str) -> tuple[list[Record], list[RowProblem]]:
    """Return the records that are objects with fields, and the problems of all other rows."""
    records: list[Record] = []
    problems: list[RowProblem] = []
    for record in rows:
        if isinstance(record, RowProblem):
            problems.append(record)
        elif isinstance(record.values, Mapping):
            records.append(record)
        else:
            text = f"{type(record.values).__name__}: {shown(record.values)}"
            problems.append(RowProblem(source, record.row, "row", Reason.NOT_OBJECT, text))
    return records, problems


def validate(
    records: Iterable[Record | RowProblem],
    source: str,
    on_bad_rows: OnBadRows,
    repeated_rows: RepeatedRows = "refuse",
) -> Preferences:
    """Check every record, and the records against each other.

    A row that repeats an earlier one is a problem, unless `repeated_rows` is "keep", as for oversampling.

    Raises:
        UnreadablePreferences: the source is empty or in another format.
        BadPreferences: a row is broken and `on_bad_rows` is "error", or no usable row is left.
    """
    if on_bad_rows not in ("error", "skip"):
        raise ValueError(f"on_bad_rows is {on_bad_rows!r}; it can be 'error' or 'skip'.")
    if repeated_rows not in ("refuse", "keep"):
        raise ValueError(f"repeated_rows is {repeated_rows!r}; it can be 'refuse' or 'keep'.")
    usable, problems = separate_records(records, source)
    total = len(usable) + len(problems)
    if not total:
        raise UnreadablePreferences(
            f"{source}: there are no rows in it; expected rows with prompt, chosen and rejected."
        )
    hint = "" if usable else "Not one record is an object with fields. Does the content fit the file's name?"
    rows, row_problems = _check_rows(usable, source, repeated_rows)
    if usable and not any("prompt" in record.values for record in usable):
        require_shared_prompts(rows, row_problems, source)
    problems = sorted(problems + row_problems, key=lambda problem: problem.row)
    if problems and (on_bad_rows == "error" or not rows):
        raise BadPreferences(problems, source, total, hint)
    return Preferences(rows, problems, source, count_repeated(rows) if repeated_rows == "keep" else 0)


def count_repeated(rows: Sequence[PreferenceRow]) -> int:
    """Return how many rows repeat an earlier one."""
    return len(rows) - len({_digest(row) for row in rows})


def _without_repetitions(rows: list[PreferenceRow]) -> tuple[list[PreferenceRow], list[RowProblem]]:
    """Keep the first of equal rows, and report the others as problems."""
    first_rows: dict[bytes, PreferenceRow] = {}
    problems: list[RowProblem] = []
    for row in rows:
        first = first_rows.setdefault(_digest(row), row)
        if first is not row:
            text = f"row {first.row}: {shown(row.prompt)}"
            problems.append(RowProblem(row.source, row.row, "row", Reason.DUPLICATE, text))
    return list(first_rows.values()), problems


def _check_rows(
    records: list[Record], source: str, repeated_rows: RepeatedRows
) -> tuple[list[PreferenceRow], list[RowProblem]]:
    if not records:
        return [], []
    require_preference_columns([(record.row, record.values) for record in records], source)
    # As in TRL, prompts are implicit only if no row has a prompt. Otherwise a prompt that is missing by mistake would
    # be guessed.
    prompt_required = any("prompt" in record.values for record in records)
    rows: list[PreferenceRow] = []
    problems: list[RowProblem] = []
    for record in records:
        try:
            row, findings = _check_row(record, source, prompt_required)
        except RecursionError:
            row, findings = None, [Finding("row", Reason.TOO_DEEP, shown(record.values))]
        if row is not None:
            rows.append(row)
        problems += [RowProblem(source, record.row, *finding) for finding in findings]
    if repeated_rows == "refuse":
        rows, repetitions = _without_repetitions(rows)
        problems += repetitions
    rows, minority = _one_form(rows)
    return rows, problems + minority


def _check_row(record: Record, source: str, prompt_required: bool) -> tuple[PreferenceRow | None, list[Finding]]:
    values = record.values
    texts: dict[str, Any] = {"prompt": None}
    findings: list[Finding] = []
    for name in ("prompt", "chosen", "rejected"):
        if name == "prompt" and not prompt_required:
            continue
        if name not in values:
            findings.append(_missing(name, values))
            continue
        texts[name], text_findings = check_text(name, values[name])
        findings += text_findings
    extra, option_findings = check_options(values)
    findings += option_findings
    if findings:
        return None, findings
    triple = resolve(texts["prompt"], texts["chosen"], texts["rejected"])
    if isinstance(triple, Finding):
        return None, [triple]
    findings = order_findings(triple)
    if findings:
        return None, findings
    chosen_finished, rejected_finished = (extra.pop(name, None) is not False for name in FINISHED)
    row = PreferenceRow(*triple, source, record.row, chosen_finished, rejected_finished, extra)
    return row, []


def _missing(name: str, values: Mapping[str, Any]) -> Finding:
    near = nearest_column(name, [str(key) for key in values])
    hint = f"; rename {near!r} to {name!r}" if near else ""
    return Finding(name, Reason.MISSING, f"the row has {', '.join(str(key) for key in values) or 'no fields'}{hint}")


def _digest(row: PreferenceRow) -> bytes:
    """Hash what makes two rows the same training example: their texts and the other arguments of the chat template."""
    template = row.extra.get("tools"), row.extra.get("chat_template_kwargs")
    content = _CANONICAL.encode([row.prompt, row.chosen, row.rejected, template])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _one_form(rows: list[PreferenceRow]) -> tuple[list[PreferenceRow], list[RowProblem]]:
    """Keep the rows in the form, plain text or messages, that most rows have, and report the others as problems.

    A file with both is two files mixed up, and would train on two formats.
    """
    conversational = sum(row.conversational for row in rows)
    if conversational in (0, len(rows)):
        return rows, []
    majority = 2 * conversational >= len(rows)
    same_form = [row for row in rows if row.conversational == majority]
    odd = [row for row in rows if row.conversational != majority]
    problems = [
        RowProblem(row.source, row.row, "row", Reason.MIXED_FILE, f"prompt: {shown(row.prompt)}") for row in odd
    ]
    return same_form, problems
