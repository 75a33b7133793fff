"""Columns that look like part of the prompt: what stands in them must be in what the model is asked, or be named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tdpo.preferences.prompts import split_prompt

PROMPT_WORDS = frozenset({
    "prompt", "question", "instruction", "input", "query", "context", "system", "history", "dialogue", "dialog",
    "conversation", "message", "turn", "problem", "passage", "document", "article", "premise", "background",
    "utterance", "request", "user", "human",
})  # fmt: skip
# What is said *about* a prompt: prompt_id, question_type, context_length, input_model …
ABOUT_WORDS = frozenset({
    "id", "ids", "uid", "uuid", "idx", "index", "hash", "fingerprint", "source", "origin", "type", "kind", "category",
    "categories", "class", "label", "topic", "tag", "tags", "domain", "dataset", "split", "url", "date", "time",
    "timestamp", "version", "len", "length", "token", "tokens", "size", "count", "num", "number", "score", "scores",
    "rating", "reward", "model", "name", "lang", "language", "level", "difficulty", "quality", "finished",
})  # fmt: skip
NOTHING = ("", "[]", "{}", "null", "none", "nan")
ANSWERING = ("assistant", "gpt", "bot", "model", "ai")
NOT_SAID = ("role", "from", "name", "id", "type", "tool_call_id")


class Unused(NamedTuple):
    """A column with text that the prompt does not hold: in how many rows that is so, and in which first."""

    column: str
    rows: int
    first: int


def looks_like_prompt(column: str) -> bool:
    """Whether a column's name is that of a part of the prompt, in any case and with any word beside it."""
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
    if ABOUT_WORDS.intersection(words):
        return False
    return words == ["text"] or any(word in PROMPT_WORDS or word.removesuffix("s") in PROMPT_WORDS for word in words)


def unused_columns(
    rows: Sequence[tuple[int, Mapping[str, Any]]], *, also: str | None = None, but: Sequence[str] = ("prompt",)
) -> list[Unused]:
    """Columns of numbered rows that look like part of the prompt, and the column `also`, where text in them is not
    part of what the model is asked. Every row is judged by itself, so one that fits excuses no other."""
    columns = dict.fromkeys(str(column) for _, row in rows for column in row)
    candidates = [name for name in columns if name not in but and (name == also or looks_like_prompt(name))]
    missed: dict[str, list[int]] = {name: [] for name in candidates}
    for number, row in rows if candidates else ():
        for name in _missed(row, candidates):
            missed[name].append(number)
    return [Unused(name, len(numbers), numbers[0]) for name, numbers in missed.items() if numbers]


def _missed(row: Mapping[str, Any], candidates: Sequence[str]) -> list[str]:
    """The columns of one row with text that the model would not be asked."""
    try:
        given = {name: [_plain(part) for part in _parts(row.get(name))] for name in candidates}
        asked = _plain("\n".join(_asked(row))) if any(given.values()) else ""
    except RecursionError:  # nested without end; the fields themselves are checked by row
        return []
    return [name for name, parts in given.items() if any(part not in asked for part in parts)]


def _asked(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts that the model is asked: of the prompt, and of what both responses share where they hold it."""
    yield from _parts(row.get("prompt"))
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is None:
            yield str(split_prompt(chosen, rejected).prompt)
        return
    for response in (chosen, rejected):
        yield from () if isinstance(response, str) else _parts(response)


def _parts(value: Any) -> Iterator[str]:
    """The texts within a value, without what an assistant says and without what says nothing."""
    if isinstance(value, str):
        if value.strip().lower() not in NOTHING:
            yield value
    elif isinstance(value, Mapping):
        speaker = value.get("role", value.get("from"))
        if str(speaker).lower() not in ANSWERING:
            for key, item in value.items():
                yield from () if key in NOT_SAID else _parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)


def _plain(text: str) -> str:
    return " ".join(text.split())
