"""Recognition of other data formats by their columns, for error messages that say what a source holds instead."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tdpo.preferences.prompt_columns import UnusedColumn, unused_columns
from tdpo.preferences.rows import UnreadablePreferences, shown

EXPECTED = (
    "Expected are the columns 'chosen' and 'rejected' and, unless both contain it, 'prompt': "
    "each a text, or each a list of messages with role and content."
)
EXPECTED_PROMPTS = "Expected is a column 'prompt': a text, or a list of messages with role and content."
ONE_PROMPT = (
    "Write one column 'prompt' that holds all that the model is to be asked: a text, or messages, in which a system "
    "text is a turn of its own."
)


class Requirement(NamedTuple):
    """The columns that a source must have, and a sentence that describes them."""

    columns: tuple[str, ...]
    sentence: str


PAIRS = Requirement(("chosen", "rejected"), EXPECTED)
PROMPTS = Requirement(("prompt",), EXPECTED_PROMPTS)

# Columns, name of the format, advice. The first entry whose columns are all present names the format.
SIBLINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("chosen_ids",), "preferences that are already tokenised", "Give the texts; tokenising happens here."),
    (("input_ids",), "text that is already tokenised", "Give the texts; tokenising happens here."),
    (
        ("prompt", "completion", "label"),
        "unpaired preferences (one completion with a label a row, as for KTO)",
        "Make one row of a completion labelled true and one labelled false for the same prompt.",
    ),
    (("completions", "labels"), "stepwise supervision (completions with a label each)", "It holds no pairs."),
    *(
        (
            (name,),
            f"several {name} a prompt",
            "Write one row a pair: 'prompt' with its text, the better one in 'chosen', a worse one in 'rejected'.",
        )
        for name in ("completions", "responses", "answers", "generations", "candidates")
    ),
    (("prompt", "completion"), "prompts with one completion (supervised fine-tuning)", "It prefers nothing."),
    (
        ("instruction", "output"),
        "instructions with one output (supervised fine-tuning)",
        "It prefers nothing.",
    ),
    (("messages",), "conversations (supervised fine-tuning)", "They prefer nothing."),
    (("conversations",), "conversations in ShareGPT's form (supervised fine-tuning)", "They prefer nothing."),
    (
        ("winner",),
        "two responses with the winner named in a column",
        "Put the winner's text into 'chosen', the other's into 'rejected'.",
    ),
    (("text",), "plain text (language modelling)", "It prefers nothing."),
)


def nearest_column(name: str, columns: Collection[str]) -> str | None:
    """Return the column that is most likely a misspelling of `name`, or None."""
    by_lower_case = {column.strip().lower(): column for column in columns if column != name}
    matches = difflib.get_close_matches(name, by_lower_case, n=1, cutoff=0.85)
    return by_lower_case[matches[0]] if matches else None


def require_preference_columns(rows: Sequence[tuple[int, Mapping[str, Any]]], source: str) -> None:
    """Check that numbered rows have `chosen` and `rejected`, and that no part of the prompt is in another column.

    Raises UnreadablePreferences if no row has one of the two columns, or if a column that is not read seems to hold
    the prompt or a part of it.
    """
    columns = list(dict.fromkeys(str(column) for _, row in rows for column in row))
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise UnreadablePreferences(_no_pairs(columns, missing, source))
    if "prompt" in columns:
        _refuse_unused(unused_columns(rows), source)
        return
    unused = unused_columns(rows, also=nearest_column("prompt", columns))
    if len(unused) == 1:
        raise UnreadablePreferences(
            f"{source}: there is no column 'prompt', but {unused[0].name!r} looks like it. Rename it to 'prompt': "
            f"chosen and rejected do not both begin with its text ({_where(unused[0])}). Only if they begin with "
            "another prompt, give the column a name that does not look like one."
        )
    if unused:
        raise UnreadablePreferences(
            f"{source}: there is no column 'prompt', but {_named(unused)} look like parts of it. {ONE_PROMPT}"
        )


def require_prompt_column(rows: Sequence[tuple[int, Mapping[str, Any]]], source: str) -> None:
    """Check that numbered rows have `prompt`, and that no part of the prompt is in another column.

    Raises UnreadablePreferences if no row has it, naming the column that it probably is, or if a column that is not
    read seems to hold a part of the prompt.
    """
    columns = list(dict.fromkeys(str(column) for _, row in rows for column in row))
    if "prompt" in columns:
        _refuse_unused(unused_columns(rows), source)
        return
    lines = [f"{source}: no row has 'prompt'; its columns are {_listed(columns)}."]
    unused = unused_columns(rows, also=nearest_column("prompt", columns))
    names = [part.name for part in unused]
    if names in (["messages"], ["conversations"]) or (not names and "messages" in columns):
        name = names[0] if names else "messages"
        lines.append(f"This looks like conversations: leave out their last answer and rename {name!r} to 'prompt'.")
    elif len(names) == 1:
        lines.append(f"{names[0]!r} looks like it: rename it to 'prompt'.")
    elif names:
        lines.append(f"{_named(unused)} look like parts of it. {ONE_PROMPT}")
    raise UnreadablePreferences("\n".join([*lines, EXPECTED_PROMPTS]))


def _refuse_unused(unused: list[UnusedColumn], source: str) -> None:
    """Raise if columns beside `prompt` hold parts of a prompt that are not in it."""
    if not unused:
        return
    one = len(unused) == 1
    raise UnreadablePreferences(
        f"{source}: the column{'' if one else 's'} {_named(unused)} look{'s' if one else ''} like part of the prompt, "
        f"but {'its' if one else 'their'} text is not in the column 'prompt' ({_where(unused[0])}), and the model "
        f"would not see it. {ONE_PROMPT} If the model is not to see it, remove the column, or give it a name that does "
        "not look like a part of the prompt."
    )


def _named(unused: list[UnusedColumn]) -> str:
    names = [repr(part.name) for part in unused]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _where(part: UnusedColumn) -> str:
    return f"in row {part.first_row}" if part.rows == 1 else f"in {part.rows} rows, first in row {part.first_row}"


def _listed(columns: list[str]) -> str:
    return ", ".join(repr(column) for column in columns[:20]) + (", …" if len(columns) > 20 else "")


def _no_pairs(columns: list[str], missing: list[str], source: str) -> str:
    lines = [f"{source}: no row has {' or '.join(repr(name) for name in missing)}; its columns are {_listed(columns)}."]
    near = {name: nearest_column(name, columns) for name in ("prompt", *missing) if name not in columns}
    suggestions = [f"{column!r} to {name!r}" for name, column in near.items() if column is not None]
    sibling = _sibling(columns)
    if sibling and not any(near.get(name) for name in missing):
        lines += sibling  # a name alone would not make pairs of it
    elif suggestions:
        lines.append(f"Misspelt? Rename {' and '.join(suggestions)}.")
    return "\n".join([*lines, EXPECTED])


def _sibling(columns: list[str]) -> list[str]:
    names = {column.strip().lower() for column in columns}
    names |= {"prompt"} & {name.removesuffix("s") for name in names}
    for columns_of_format, what, advice in SIBLINGS:
        if set(columns_of_format) <= names:
            return [f"This looks like {what}. {advice}"]
    if any(word in column for column in columns for word in ("score", "reward", "rating")):
        return ["This looks like scores without the texts that they belong to."]
    if columns == ["prompt"]:
        return ["This looks like prompts alone; `tdpo pairs` makes preferences from prompts and a reward."]
    return []


def describe_document(value: object) -> str:
    """Describe what a JSON document holds, for the error that it is not a list of rows."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(repr(key) for key in list(value)[:10])}"
    return f"{type(value).__name__}: {shown(value)}"
