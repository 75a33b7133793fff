"""One row as three wholes (the prompt, and the prompt with either response), and what a template changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..chat_templates import Conversation, Encoder, EndOfTurn, TemplateRefusal, prefix_length, without_tail
from ..preferences import Message, PreferenceRow
from ..preferences.rows import shown
from .turns import CountedTurns, Gaps, UnknownTurns, gaps_of, has_other_turns


class TemplateReason(StrEnum):
    """Why a row cannot be used with the tokenizer's chat template."""

    REFUSED = "is not rendered by the chat template"
    TURNS = "has turns of others than the assistant, which cannot be told apart under this chat template"
    REWRITTEN = "is written otherwise by the chat template when a response follows: some of it would be trained on"


class UnusableRow(ValueError):
    """A row that the chat template cannot render as it is: field, reason, and what came."""

    def __init__(self, field: str, reason: str, text: str) -> None:
        super().__init__(field, reason, text)
        self.field, self.reason, self.text = field, reason, text


@dataclass(frozen=True)
class Whole:
    """A prompt with a response, tokenised as one text that ends where the response's last turn does.

    Args:
        ids: the tokens.
        gaps: spans of them that others than the assistant wrote.
        dropped: the text that the template writes before a response that is yet to come, and not before this one.
        reduced: whether the template leaves out some of the response.
    """

    ids: list[int]
    gaps: Gaps = ()
    dropped: str = ""
    reduced: bool = False


@dataclass(frozen=True)
class Wholes:
    """The prompt alone and with each response; `reduced` says whether the template leaves out some of the prompt."""

    prompt: list[int]
    chosen: Whole
    rejected: Whole
    reduced: bool = False


def encode_row(row: PreferenceRow, encoder: Encoder, end: EndOfTurn, counted_turns: CountedTurns) -> Wholes:
    """Encode the prompt of a row, alone and with each response; a response is never tokenised on its own.

    Raises UnusableRow; ValueError for a conversation where the tokenizer has no chat template.
    """
    if isinstance(row.prompt, str):
        chosen, rejected = (Whole(encoder.plain(row.prompt + str(text))) for text in (row.chosen, row.rejected))
        return Wholes(encoder.plain(row.prompt, is_prompt=True), chosen, rejected)
    prompt = conversation_of(row)
    text = _rendered(row, encoder, prompt, "prompt", generation_prompt=True)

    def whole(field: str, turns: Any, finished: bool) -> Whole:
        return _whole(
            row, encoder, prompt, text, field, turns, without_gaps=counted_turns == "all", end=end, finished=finished
        )

    chosen = whole("chosen", row.chosen, row.chosen_finished)
    rejected = whole("rejected", row.rejected, row.rejected_finished)
    reduced = _is_reduced(prompt.messages, text) or not all(_name(tool) in text for tool in prompt.tools or ())
    return Wholes(encoder.rendered(text), chosen, rejected, reduced)


def _whole(
    row: PreferenceRow,
    encoder: Encoder,
    prompt: Conversation,
    text: str,
    field: str,
    turns: Sequence[Message],
    *,
    without_gaps: bool,
    end: EndOfTurn,
    finished: bool,
) -> Whole:
    """A conversation with one response; `text` is the rendered prompt."""
    whole = _rendered(row, encoder, prompt.followed_by(turns), field)
    content_end = _end_of_content(prompt.messages, text)
    shared = len(text) if whole.startswith(text) else prefix_length(text, whole)
    if shared < len(text) and (content_end is None or shared < content_end):
        raise UnusableRow("prompt", TemplateReason.REWRITTEN, f"with {field}, from {shown(text[shared:])} on")
    ids = encoder.rendered(without_tail(whole, end, finished))
    gaps: Gaps = ()
    if has_other_turns(turns) and not without_gaps:
        try:
            gaps = gaps_of(encoder, prompt, turns, whole, ids, end)
        except UnknownTurns as error:
            raise UnusableRow(field, TemplateReason.TURNS, f"{error}; counted_turns=all counts them") from error
    return Whole(ids, gaps, text[shared:], _is_reduced(turns, whole[content_end or 0 :]))


def conversation_of(row: PreferenceRow) -> Conversation:
    """The prompt of a conversational row with its tools and template arguments, which validation has checked."""
    assert not isinstance(row.prompt, str)
    return Conversation(row.prompt, row.extra.get("tools"), row.extra.get("chat_template_kwargs") or {})


def _rendered(
    row: PreferenceRow, encoder: Encoder, conversation: Conversation, field: str, *, generation_prompt: bool = False
) -> str:
    """The text of a conversation, or UnusableRow for what the template refuses; the missing template is named."""
    try:
        return encoder.render(conversation, generation_prompt=generation_prompt)
    except TemplateRefusal as refusal:
        if isinstance(refusal.__cause__, TimeoutError):
            raise TemplateRefusal(f"{row.source}:{row.row}: {refusal}") from refusal.__cause__
        raise UnusableRow(field, TemplateReason.REFUSED, str(refusal)) from refusal
    except ValueError as error:
        raise ValueError(f"{row.source}:{row.row} {error}") from error


def _end_of_content(messages: Sequence[Message], text: str) -> int | None:
    """Where in the rendered text the last message's content ends; None where it does not stand there as it is."""
    content = str(messages[-1].get("content") or "").strip()
    at = text.rfind(content)
    return at + len(content) if content and at >= 0 else None


def _is_reduced(messages: Sequence[Message] | str, text: str) -> bool:
    """Whether some words of the messages do not stand in the text; white space does not count."""
    squeezed = _squeezed(text)
    return any(_squeezed(words) not in squeezed for message in messages for words in _words(message))


def _words(message: Any) -> Iterable[str]:
    """The texts that a message consists of, and the names of the tools that it calls."""
    yield str(message.get("content") or "")
    for key, value in message.items():
        if isinstance(value, str) and ("reason" in key or "think" in key):
            yield value
    for call in message.get("tool_calls") or ():
        yield _name(call)


def _name(tool: Any) -> str:
    """The name of a tool, or of the tool that is called; "" where it has none."""
    inner = tool.get("function") if isinstance(tool, dict) else None
    holder = inner if isinstance(inner, dict) else tool
    return str(holder.get("name") or "") if isinstance(holder, dict) else ""


def _squeezed(text: str) -> str:
    return "".join(text.split())
