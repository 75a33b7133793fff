"""Where the assistant's turn ends, asked of the chat template itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .conversations import Conversation
from .prefixes import prefix_length
from .rendering import TemplateRefusal, render

# Words that no template writes of itself, one a turn.
QUESTION, ANSWER, NEXT_QUESTION, NEXT_ANSWER = "Probequestion", "Probeanswer", "Nextquestion", "Nextanswer"
SHORTEST_TEXT = 4  # characters of a constant text that ends a turn; a full stop is none


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes behind the content of the last assistant turn.

    `tail` is all of it; the turn ends with the token `token_id`, or, where no special token stands there, with the
    constant text `text`, which the tokenizer may split; `behind` is what follows it. None and "" where nothing that a
    model could stop at is written.
    """

    tail: str = ""
    behind: str = ""
    token_id: int | None = None
    text: str = ""


def end_of_turn(tokenizer: Any, known: Collection[int] = ()) -> EndOfTurn:
    """How the tokenizer's chat template ends a turn; nothing where there is no template, or it refuses the question.

    `known` are token ids that end a response for another reason, such as the tokenizer's end-of-sequence token: where
    the template writes one of them after every turn, it is the end. Otherwise it is the first special or added token
    that stands there, unless it opens a turn as well; and where there is none, a word of constant text.
    """
    if not getattr(tokenizer, "chat_template", None):
        return EndOfTurn()
    last, inner, openings = _behind_answers(tokenizer)
    if last is None:
        return EndOfTurn()
    token = _end_token(tokenizer, last, inner, openings, known)
    written = _end_text(last, inner) if token is None else str(tokenizer.decode([token]))
    at = last.find(written)
    behind = last[at + len(written) :] if written and at >= 0 else ""
    return EndOfTurn(last, behind, token, written if token is None else "")


def _end_token(tokenizer: Any, last: str, inner: str | None, openings: str, known: Collection[int]) -> int | None:
    tail = _ids(tokenizer, last)
    shared = tail if inner is None else tail[: prefix_length(tail, _ids(tokenizer, inner))]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    opening = set(_ids(tokenizer, openings))
    candidates = [token for token in shared if token in special]
    candidates = candidates or [token for token in tail if token in special and token not in opening]
    return next((token for token in candidates if token in known), candidates[0] if candidates else None)


def _end_text(last: str, inner: str | None) -> str:
    """The first word behind every answer, if it is long enough not to stand within an answer."""
    words = (last if inner is None else last[: prefix_length(last, inner)]).split()
    return words[0] if words and len(words[0]) >= SHORTEST_TEXT else ""


def end_ids(tokenizer: Any, configured: Any) -> frozenset[int]:
    """All tokens that end a response: those that a generation configuration names (an id, a list of them, or None),
    the tokenizer's own, and the one with which the chat template ends a turn."""
    named = configured if isinstance(configured, list | tuple | set | frozenset) else [configured]
    known = {int(token) for token in [*named, tokenizer.eos_token_id] if token is not None}
    token = end_of_turn(tokenizer, known).token_id
    return frozenset(known if token is None else {*known, token})


def without_tail(whole: str, end: EndOfTurn, finished: bool) -> str:
    """A rendered conversation up to the end of its last turn, or up to the end of its content where that is open."""
    unsaid = end.behind if finished else end.tail
    return whole.removesuffix(unsaid) if whole.endswith(end.tail) else whole


def _behind_answers(tokenizer: Any) -> tuple[str | None, str | None, str]:
    """What stands behind the last answer of a conversation, behind an answer before another question, and before the
    first answer."""
    turns = [("user", QUESTION), ("assistant", ANSWER), ("user", NEXT_QUESTION), ("assistant", NEXT_ANSWER)]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = _rendered(tokenizer, messages)
    if whole is not None and all(whole.count(content) == 1 for _, content in turns):
        before, _, rest = whole.partition(ANSWER)
        return whole.partition(NEXT_ANSWER)[2], rest.partition(NEXT_QUESTION)[0], before.replace(QUESTION, "\n")
    single = _rendered(tokenizer, messages[:2])  # some templates take one question only
    if single is not None and single.count(ANSWER) == 1:
        before, _, rest = single.partition(ANSWER)
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
