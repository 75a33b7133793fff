"""One row as three wholes (the prompt, and the prompt with either response), and what a template changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..chat_templates import Conversation, Encoder, EndOfTurn, TemplateRefusal, prefix_length
from ..preferences import Message, PreferenceRow
from ..preferences.rows import shown


class TemplateReason(StrEnum):
    """Why a row cannot be used with the tokenizer's chat template."""

    REFUSED = "is not rendered by the chat template"
    REWRITTEN = "is written otherwise by the chat template when a response follows: some of it would be trained on"


class UnusableRow(ValueError):
    """A row that the chat template cannot render as it is: field, reason, and what came."""

    def __init__(self, field: str, reason: str, text: str) -> None:
        super().__init__(field, reason, text)
        self.field, self.reason, self.text = field, reason, text


@dataclass(frozen=True)
class Wholes:
    """Token ids of the prompt and of the prompt with each response, which ends where its turn does.

    `dropped` is what stands before an answer that is to be generated, and not before one that is there. Of a response
    or of the prompt `reduced` says that the template does not write all of it.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    dropped: str = ""
    prompt_reduced: bool = False
    response_reduced: bool = False


def encode_row(row: PreferenceRow, encoder: Encoder, end: EndOfTurn) -> Wholes:
    """Encode a row, never a response on its own.

    Raises UnusableRow; ValueError for a conversation where the tokenizer has no chat template.
    """
    if isinstance(row.prompt, str):
        chosen, rejected = (encoder.plain(row.prompt + str(text)) for text in (row.chosen, row.rejected))
        return Wholes(encoder.plain(row.prompt, is_prompt=True), chosen, rejected)
    conversation = conversation_of(row)
    prompt = rendered(row, encoder, conversation, "prompt", generation_prompt=True)
    responses: dict[str, Any] = {"chosen": row.chosen, "rejected": row.rejected}
    finished = {"chosen": row.chosen_finished, "rejected": row.rejected_finished}
    spoken = _end_of_content(row.prompt, prompt)
    wholes, dropped, reduced = {}, "", False
    for name, turns in responses.items():
        whole = rendered(row, encoder, conversation.followed_by(turns), name)
        shared = len(prompt) if whole.startswith(prompt) else prefix_length(prompt, whole)
        if shared < len(prompt) and (spoken is None or shared < spoken):
            raise UnusableRow("prompt", TemplateReason.REWRITTEN, f"with {name}, from {shown(prompt[shared:])} on")
        dropped = max(dropped, prompt[shared:], key=len)
        reduced |= _is_reduced(turns, whole[spoken or 0 :])
        wholes[name] = encoder.rendered(without_tail(whole, end, finished[name]))
    prompt_reduced = _is_reduced(row.prompt, prompt) or not _names_tools(conversation, prompt)
    return Wholes(encoder.rendered(prompt), wholes["chosen"], wholes["rejected"], dropped, prompt_reduced, reduced)


def conversation_of(row: PreferenceRow) -> Conversation:
    """The prompt of a conversational row with its tools and template arguments, which validation has checked."""
    assert not isinstance(row.prompt, str)
    return Conversation(row.prompt, row.extra.get("tools"), row.extra.get("chat_template_kwargs") or {})


def rendered(
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


def without_tail(whole: str, end: EndOfTurn, finished: bool) -> str:
    """A rendered conversation up to the end of its last turn, or up to the end of its content where that is open."""
    unsaid = end.behind if finished else end.tail
    return whole.removesuffix(unsaid) if whole.endswith(end.tail) else whole


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


def _names_tools(conversation: Conversation, text: str) -> bool:
    return all(_name(tool) in text for tool in conversation.tools or ())


def _name(tool: Any) -> str:
    """The name of a tool, or of the tool that is called; "" where it has none."""
    inner = tool.get("function") if isinstance(tool, dict) else None
    holder = inner if isinstance(inner, dict) else tool
    return str(holder.get("name") or "") if isinstance(holder, dict) else ""


def _squeezed(text: str) -> str:
    return "".join(text.split())
