"""Which format a source is in when it is not one of preferences, judged by its columns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tdpo.preferences.rows import UnreadablePreferences, shown

EXPECTED = (
    "Expected are the columns 'chosen' and 'rejected' and, unless both contain it, 'prompt': "
    "each a text, or each a list of messages with role and content."
)
EXPECTED_PROMPTS = "Expected is a column 'prompt': a text, or a list of messages with role and content."
PROMPT_NAMES_ELSEWHERE = ("question", "instruction", "query", "input", "context")


class Wanted(NamedTuple):
    """What a source is read for: the columns that it must have, and a sentence about them."""

    columns: tuple[str, ...]
    expected: str


PAIRS = Wanted(("chosen", "rejected"), EXPECTED)
PROMPTS = Wanted(("prompt",), EXPECTED_PROMPTS)

# The first entry whose columns are all there names the format. Columns, what it is, what to do.
SIBLINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("chosen_ids",), "preferences that are already tokenised", "Give the texts; tokenising happens here."),
    (("input_ids",), "text that is already tokenised", "Give the texts; tokenising happens here."),
    (
        ("prompt", "completion", "label"),
        "unpaired preferences (one completion with a label a row, as for KTO)",
        "Make one row of a completion labelled true and one labelled false for the same prompt.",
    ),
    (("completions", "labels"), "stepwise supervision (completions with a label each)", "It holds no pairs."),
    (
        ("prompt", "completions"),
        "several completions a prompt",
        "Pair a better one ('chosen') with a worse one ('rejected').",
    ),
    (
        ("prompt", "responses"),
        "several responses a prompt",
        "Pair a better one ('chosen') with a worse one ('rejected').",
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


def nearest_column(wanted: str, columns: Collection[str]) -> str | None:
    """The column that is most likely a misspelt `wanted`."""
    by_form = {column.strip().lower(): column for column in columns if column != wanted}
    matches = difflib.get_close_matches(wanted, by_form, n=1, cutoff=0.85)
    return by_form[matches[0]] if matches else None


def require_preference_columns(rows: list[Mapping[str, Any]], source: str) -> None:
    """Raise `UnreadablePreferences` where no row has `chosen` or `rejected`, or where the prompt has another name."""
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise UnreadablePreferences(_no_pairs(columns, missing, source))
    if "prompt" not in columns:
        renamed = nearest_column("prompt", columns) or _prompt_by_another_name(rows, columns)
        if renamed is not None:
            raise UnreadablePreferences(
                f"{source}: there is no column 'prompt', but {renamed!r} looks like it. Rename it to 'prompt', or "
                "remove it if chosen and rejected contain the prompt themselves."
            )


def _no_pairs(columns: list[str], missing: list[str], source: str) -> str:
    names = ", ".join(repr(column) for column in columns[:20]) + (", …" if len(columns) > 20 else "")
    lines = [f"{source}: no row has {' or '.join(repr(name) for name in missing)}; its columns are {names}."]
    near = {name: nearest_column(name, columns) for name in ("prompt", *missing) if name not in columns}
    suggestions = [f"{column!r} to {name!r}" for name, column in near.items() if column is not None]
    if suggestions:
        lines.append(f"Misspelt? Rename {' and '.join(suggestions)}.")
    else:
        lines += _sibling(columns)
    return "\n".join([*lines, EXPECTED])


def _sibling(columns: list[str]) -> list[str]:
    for needed, what, advice in SIBLINGS:
        if set(needed) <= set(columns):
            return [f"This looks like {what}. {advice}"]
    if any(word in column for column in columns for word in ("score", "reward", "rating")):
        return ["This looks like scores without the texts that they belong to."]
    if columns == ["prompt"]:
        return ["This looks like prompts alone; `tdpo pairs` makes preferences from prompts and a reward."]
    return []


def _prompt_by_another_name(rows: list[Mapping[str, Any]], columns: list[str]) -> str | None:
    """A column such as `question` whose text the plain responses do not contain, so that it must be the prompt."""
    for name in PROMPT_NAMES_ELSEWHERE:
        texts = [(row.get(name), row.get("chosen")) for row in rows[:100]] if name in columns else []
        pairs = [(p.strip(), c) for p, c in texts if isinstance(p, str) and p.strip() and isinstance(c, str)]
        if pairs and not any(prompt in chosen for prompt, chosen in pairs):
            return name
    return None


def require_prompt_column(rows: list[Mapping[str, Any]], source: str) -> None:
    """Raise `UnreadablePreferences` where no row has `prompt`, with the column that it probably is."""
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    if "prompt" in columns:
        return
    names = ", ".join(repr(column) for column in columns[:20]) + (", …" if len(columns) > 20 else "")
    lines = [f"{source}: no row has 'prompt'; its columns are {names}."]
    elsewhere = next((name for name in PROMPT_NAMES_ELSEWHERE if name in columns), None)
    renamed = nearest_column("prompt", columns) or elsewhere
    if renamed is not None:
        lines.append(f"{renamed!r} looks like it: rename it to 'prompt'.")
    elif "messages" in columns:
        lines.append("This looks like conversations: leave out their last answer and rename 'messages' to 'prompt'.")
    raise UnreadablePreferences("\n".join([*lines, EXPECTED_PROMPTS]))


def describe_document(value: object) -> str:
    """What a JSON document holds, for the error that it is no list of rows."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(repr(key) for key in list(value)[:10])}"
    return f"{type(value).__name__}: {shown(value)}"
