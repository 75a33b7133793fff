"""Preference rows, the problems that a row can have, and the errors that describe them to a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tdpo.preferences.reasons import Reason

Message = dict[str, Any]
Text = str | list[Message]

SHOWN_CHARACTERS = 80
SHOWN_PROBLEMS = 20
_INDEX = re.compile(r"\[\d+\]")


class Triple(NamedTuple):
    """A prompt and its two responses, all three plain text or all three lists of messages."""

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True)
class PreferenceRow:
    """One prompt with a chosen and a rejected response.

    The three texts are all `str`, or all lists of messages (`{"role": ..., "content": ...}` and any other keys of the
    message). `row` counts from 1: lines in JSON Lines, records elsewhere (a CSV header is not a record). `*_finished`
    is False where the sampler stopped at its length limit, so that no end-of-sequence token belongs after the response.
    `extra` holds every other column; `tools` is in it as a list, never as JSON text.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    source: str
    row: int
    chosen_finished: bool = True
    rejected_finished: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether the three texts are lists of messages."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True)
class RowProblem:
    """Why one row cannot be used: `reason` is a fixed sentence (see `Reason`), `text` shows the value in one line."""

    source: str
    row: int
    field: str
    reason: str
    text: str

    @property
    def kind(self) -> str:
        """The field and its reason as a sentence, alike for every position in a list: "chosen[].role is null"."""
        return f"{_INDEX.sub('[]', self.field)} {self.reason}"

    def __str__(self) -> str:
        detail = f" ({self.text})" if self.text else ""
        return f"{self.source}:{self.row}: {self.field}: {self.reason}{detail}"


@dataclass(frozen=True)
class Preferences:
    """Validated rows in the order of the file.

    `problems` is empty unless bad rows were skipped. `repeated` counts the rows that repeat an earlier one; it is 0
    unless they were to be kept.
    """

    rows: list[PreferenceRow]
    problems: list[RowProblem]
    source: str
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def summary(self) -> dict[str, Any]:
        """Counts for the run directory. A skipped row with two problems counts once as skipped, and twice by reason."""
        return {
            "source": self.source,
            "rows": len(self.rows),
            "skipped": self.skipped,
            "problems_by_reason": count_reasons(self.problems),
            "repeated": self.repeated,
        }

    @property
    def skipped(self) -> int:
        """The number of rows that were left out, as they could not be used."""
        return len({problem.row for problem in self.problems})

    def remarks(self) -> list[str]:
        """A sentence about the rows that were left out, and one about those that were kept though they repeat."""
        sentences = []
        if self.problems:
            reasons = ", ".join(f"{count} × {kind}" for kind, count in _count_kinds(self.problems).items())
            sentences.append(f"{self.source}: rows that cannot be used are left out: {self.skipped} ({reasons}).")
        if self.repeated:
            sentences.append(
                f"{self.source}: {self.repeated} of {len(self.rows)} rows repeat an earlier one and are kept."
            )
        return sentences


class UnreadablePreferences(ValueError):
    """The source as a whole cannot be read as preferences. The message says what it holds and what to do."""


class BadPreferences(ValueError):
    """Rows of the source are broken.

    `problems` has all their problems, ordered by row. The message shows the first 20, and how to leave these rows out
    where the caller can do that (`skippable`): as an argument in Python, or as a key of the `section` of a recipe.
    """

    def __init__(
        self,
        problems: Sequence[RowProblem],
        source: str,
        total: int,
        hint: str = "",
        *,
        skippable: bool = True,
        section: str | None = None,
    ) -> None:
        self.problems = list(problems)
        self.source = source
        self.total = total
        self.hint = hint
        self.skippable = skippable
        super().__init__(_describe(self.problems, source, total, hint, skippable, section))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self), self.problems, self.source, self.total, self.hint, self.skippable)


def _rebuild(
    message: str, problems: list[RowProblem], source: str, total: int, hint: str, skippable: bool
) -> BadPreferences:
    """Restore a pickled error with its attributes: exceptions are otherwise unpickled from their message alone."""
    error = BadPreferences(problems, source, total, hint, skippable=skippable)
    error.args = (message,)
    return error


@contextmanager
def read_for(section: str | None) -> Iterator[None]:
    """Have errors about rows name the keys of this section of a recipe; None where there is no key to skip rows."""
    try:
        yield
    except BadPreferences as error:
        skippable = error.skippable and section is not None
        raise BadPreferences(
            error.problems, error.source, error.total, error.hint, skippable=skippable, section=section
        ) from error


def count_reasons(problems: Sequence[RowProblem]) -> dict[str, int]:
    """Count how often each reason occurs, in order of frequency."""
    return dict(Counter(str(problem.reason) for problem in problems).most_common())


def _count_kinds(problems: Sequence[RowProblem]) -> dict[str, int]:
    return dict(Counter(problem.kind for problem in problems).most_common())


def _setting(name: str, value: str, section: str | None) -> str:
    """How the caller sets it: as an argument in Python, or as a key of a recipe."""
    return f'{name}="{value}"' if section is None else f"{section}.{name}={value}"


def _describe(
    problems: Sequence[RowProblem], source: str, total: int, hint: str, skippable: bool, section: str | None
) -> str:
    bad = len({problem.row for problem in problems})
    left = total - bad
    lines = [f"{source}: {bad} of {total} rows cannot be used:"]
    lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    lines.append("By reason:")
    first: dict[str, int] = {}
    for problem in problems:
        first.setdefault(problem.kind, problem.row)
    for kind, count in _count_kinds(problems).items():
        lines.append(f"  {count} × {kind} (first in row {first[kind]})")
    if left and not skippable:
        lines.append("Repair these rows, or take them out.")
    elif left:
        remain = "1 row remains" if left == 1 else f"{left} rows remain"
        skip = _setting("on_bad_rows", "skip", section)
        lines.append(f"Repair these rows, or leave them out with {skip}: {remain}.")
    else:
        lines.append("No usable row is left.")
    if any(problem.reason == Reason.DUPLICATE for problem in problems):
        lines.append(f"Rows that repeat on purpose are kept with {_setting('repeated_rows', 'keep', section)}.")
    return "\n".join([*lines, hint] if hint else lines)


def shown(value: object, near: int = 0) -> str:
    """Render `value` in one line of at most about 80 characters.

    Strings are quoted, and characters that cannot be printed are escaped. A long string is cut to the characters around
    position `near`.
    """
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:  # an object within an object within …
        text = f"{type(value).__name__} …"
    start = max(0, near - SHOWN_CHARACTERS // 2) if len(text) > SHOWN_CHARACTERS else 0
    window = text[start : start + SHOWN_CHARACTERS]
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in window)
    goes_on = len(printable) > SHOWN_CHARACTERS or start + SHOWN_CHARACTERS < len(text)
    line = ("…" if start else "") + printable[:SHOWN_CHARACTERS] + ("…" if goes_on else "")
    return f"'{line}'" if isinstance(value, str) else line
