"""Detection of columns that look like a part of the prompt and whose text the model would not see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tdpo.preferences.prompt_splitting import split_prompt

PROMPT_WORDS = frozenset({
    "prompt", "question", "instruction", "input", "query", "context", "system", "history", "dialogue", "dialog",
    "conversation", "message", "turn", "problem", "passage", "document", "article", "premise", "background",
    "utterance", "request", "user", "human",
})  # fmt: skip
# Words of columns that describe a prompt and are no part of it: prompt_id, question_type, context_length, input_model …
ABOUT_WORDS = frozenset({
    "id", "ids", "uid", "uuid", "idx", "index", "hash", "fingerprint", "source", "origin", "type", "kind", "category",
    "categories", "class", "label", "topic", "tag", "tags", "domain", "dataset", "split", "url", "date", "time",
    "timestamp", "version", "len", "length", "token", "tokens", "size", "count", "num", "number", "score", "scores",
    "rating", "reward", "model", "name", "lang", "language", "level", "difficulty", "quality", "finished",
})  # fmt: skip
NOTHING = ("", "[]", "{}", "null", "none", "nan")
ANSWERING = ("assistant", "gpt", "bot", "model", "ai")
NOT_SAID = ("role", "from", "name", "id", "type", "tool_call_id")


class UnusedColumn(NamedTuple):
    """A column with text that the prompt does not contain, the number of such rows, and the first of them."""

    name: str
    rows: int
    first_row: int


def looks_like_prompt(column: str) -> bool:
    """Return whether a column's name is that of a part of the prompt, in any case and with any word beside it."""
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
    if ABOUT_WORDS.intersection(words):
        return False
    return words == ["text"] or any(word in PROMPT_WORDS or word.removesuffix("s") in PROMPT_WORDS for word in words)


def unused_columns(
    rows: Sequence[tuple[int, Mapping[str, Any]]], *, also: str | None = None, but: Sequence[str] = ("prompt",)
) -> list[UnusedColumn]:
    """Return the columns of numbered rows that look like a part of the prompt and hold text that is not in the prompt.

    The column `also` is examined whatever its name, and the columns `but` are not. Every row is judged by itself: one
    row whose prompt contains the text does not excuse another.
    """
    columns = dict.fromkeys(str(column) for _, row in rows for column in row)
    candidates = [name for name in columns if name not in but and (name == also or looks_like_prompt(name))]
    rows_by_column: dict[str, list[int]] = {name: [] for name in candidates}
    for number, row in rows if candidates else ():
        for name in _unused_in_row(row, candidates):
            rows_by_column[name].append(number)
    return [UnusedColumn(name, len(numbers), numbers[0]) for name, numbers in rows_by_column.items() if numbers]


def _unused_in_row(row: Mapping[str, Any], candidates: Sequence[str]) -> list[str]:
    """Return the columns of one row that hold text which is not in the prompt."""
    try:
        texts = {name: [_plain(part) for part in _parts(row.get(name))] for name in candidates}
        prompt = _plain("\n".join(_prompt_texts(row))) if any(texts.values()) else ""
    except RecursionError:  # nested without end; the fields themselves are checked by row
        return []
    return [name for name, parts in texts.items() if any(part not in prompt for part in parts)]


def _prompt_texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the prompt. Where it is implicit, they are in what both responses share."""
    yield from _parts(row.get("prompt"))
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is None:
            yield str(split_prompt(chosen, rejected).prompt)
        return
    for response in (chosen, rejected):
        yield from () if isinstance(response, str) else _parts(response)


def _parts(value: Any) -> Iterator[str]:
    """The texts within a value, without the turns of an assistant and without empty values."""
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
