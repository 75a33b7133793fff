"""Where the assistant's turn ends, found out with the chat template itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .conversations import Conversation
from .prefixes import prefix_length
from .rendering import TemplateRefusal, render

# The contents of four turns, words that no template writes itself.
QUESTION, RESPONSE, NEXT_QUESTION, NEXT_RESPONSE = "Probequestion", "Probeanswer", "Nextquestion", "Nextanswer"
SHORTEST_TEXT = 4  # characters of a constant text that can end a turn; a full stop cannot


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes after the content of the last assistant turn.

    `tail` is all of it. The turn ends with the token `token_id` or, where there is no special token, with the
    constant text `text`, which the tokenizer may split. `behind` is what follows the end. They are None and "" where
    the template writes nothing that a model could stop at.
    """

    tail: str = ""
    behind: str = ""
    token_id: int | None = None
    text: str = ""


def end_of_turn(tokenizer: Any, other_ends: Collection[int] = ()) -> EndOfTurn:
    """How the tokenizer's chat template ends a turn; empty where there is no template or it refuses to be tried.

    `other_ends` are token ids that end a response for another reason, such as the tokenizer's end-of-sequence token. If
    the template writes one of them after every turn, that is the end. Otherwise the end is the first special or added
    token there, unless it opens a turn as well; and where there is none, a word of constant text.
    """
    if not getattr(tokenizer, "chat_template", None):
        return EndOfTurn()
    last, inner, openings = _around_responses(tokenizer)
    if last is None:
        return EndOfTurn()
    token = _end_token(tokenizer, last, inner, openings, other_ends)
    end_text = _end_text(last, inner) if token is None else str(tokenizer.decode([token]))
    at = last.find(end_text)
    behind = last[at + len(end_text) :] if end_text and at >= 0 else ""
    return EndOfTurn(last, behind, token, end_text if token is None else "")


def _end_token(tokenizer: Any, last: str, inner: str | None, openings: str, other_ends: Collection[int]) -> int | None:
    tail = _ids(tokenizer, last)
    shared = tail if inner is None else tail[: prefix_length(tail, _ids(tokenizer, inner))]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    opening = set(_ids(tokenizer, openings))
    candidates = [token for token in shared if token in special]
    candidates = candidates or [token for token in tail if token in special and token not in opening]
    return next((token for token in candidates if token in other_ends), candidates[0] if candidates else None)


def _end_text(last: str, inner: str | None) -> str:
    """The first word after every response, if it is long enough not to occur within one."""
    words = (last if inner is None else last[: prefix_length(last, inner)]).split()
    return words[0] if words and len(words[0]) >= SHORTEST_TEXT else ""


def end_ids(tokenizer: Any, configured: Any) -> frozenset[int]:
    """All tokens that end a response.

    These are the ids in a generation configuration (`configured`: an id, a list of them, or None), the tokenizer's own,
    and the token with which the chat template ends a turn.
    """
    in_config = configured if isinstance(configured, list | tuple | set | frozenset) else [configured]
    ids = {int(token) for token in [*in_config, tokenizer.eos_token_id] if token is not None}
    token = end_of_turn(tokenizer, ids).token_id
    return frozenset(ids if token is None else {*ids, token})


def without_tail(whole: str, end: EndOfTurn, finished: bool) -> str:
    """A rendered conversation up to the end of its last turn or, if that is not `finished`, of its content."""
    surplus = end.behind if finished else end.tail
    return whole.removesuffix(surplus) if whole.endswith(end.tail) else whole


def _around_responses(tokenizer: Any) -> tuple[str | None, str | None, str]:
    """What the template writes after the last response, between a response and the next question, and before the first
    response."""
    turns = [("user", QUESTION), ("assistant", RESPONSE), ("user", NEXT_QUESTION), ("assistant", NEXT_RESPONSE)]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = _rendered(tokenizer, messages)
    if whole is not None and all(whole.count(content) == 1 for _, content in turns):
        before, _, rest = whole.partition(RESPONSE)
        return whole.partition(NEXT_RESPONSE)[2], rest.partition(NEXT_QUESTION)[0], before.replace(QUESTION, "\n")
    single = _rendered(tokenizer, messages[:2])  # some templates allow one question only
    if single is not None and single.count(RESPONSE) == 1:
        before, _, rest = single.partition(RESPONSE)
        return rest, None, before.replace(QUESTION, "\n")
    return None, None, ""


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    try:
        return render(tokenizer, Conversation(messages))
    except TemplateRefusal as refusal:
        if isinstance(refusal.__cause__, TimeoutError):
            raise
        return None


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
