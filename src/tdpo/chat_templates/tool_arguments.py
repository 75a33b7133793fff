"""Whether a chat template takes a tool call's arguments as an object or as JSON text; the template itself is tried."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tdpo.preferences import Message

from .conversations import Conversation
from .rendering import TemplateRefusal, render

ARGUMENTS = {"probekey": "probevalue"}


def wants_text(tokenizer: Any) -> bool:
    """Whether arguments have to be JSON text: the template concatenates them with other text, or writes them unchanged.

    With an object, the former fails and the latter writes Python's notation. A template that makes JSON itself takes
    an object; it would quote text a second time.
    """
    try:
        as_text = render(tokenizer, _call(json.dumps(ARGUMENTS)))
    except TemplateRefusal:
        return False
    if json.dumps(ARGUMENTS) not in as_text:
        return False
    try:
        return str(ARGUMENTS) in render(tokenizer, _call(ARGUMENTS))
    except TemplateRefusal:
        return True


def with_text(conversation: Conversation) -> Conversation:
    """The conversation with every call's arguments as JSON text."""
    return replace(conversation, messages=[_with_text(message) for message in conversation.messages])


def has_objects(conversation: Conversation) -> bool:
    """Whether a message calls a tool with arguments that are an object."""
    return any(isinstance(_arguments(call), dict) for message in conversation.messages for call in _calls(message))


def _call(arguments: Any) -> Conversation:
    function = {"name": "probetool", "arguments": arguments}
    call = {"id": "probecall1", "type": "function", "function": function}
    question = {"role": "user", "content": "Probequestion"}
    return Conversation([question, {"role": "assistant", "content": "", "tool_calls": [call]}])


def _calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def _arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def _with_text(message: Message) -> Message:
    if not _calls(message):
        return message
    calls = []
    for call in _calls(message):
        arguments = _arguments(call)
        if isinstance(arguments, dict):
            text = json.dumps(arguments, ensure_ascii=False)
            call = {**call, "function": {**call["function"], "arguments": text}}
        calls.append(call)
    return {**message, "tool_calls": calls}
