"""A conversation as text, as the tokenizer's chat template writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .conversations import Conversation
from .time_limit import within

SECONDS = 10.0  # for one conversation; a template takes well under a millisecond


class TemplateRefusal(ValueError):
    """The chat template does not render a conversation: it refuses a role or an order, fails, or does not end."""


def render(tokenizer: Any, conversation: Conversation, *, generation_prompt: bool = False) -> str:
    """The text of a conversation; `generation_prompt` adds what comes before the assistant's next response.

    Raises TemplateRefusal with the template's own words.
    """
    options = {"tokenize": False, "add_generation_prompt": generation_prompt}
    return str(apply(tokenizer, conversation, options))


def apply(tokenizer: Any, conversation: Conversation, options: Mapping[str, Any]) -> Any:
    """The tokenizer's `apply_chat_template` within a time limit, with `options` beside the conversation's arguments.

    Raises TemplateRefusal.
    """

    def applied() -> Any:
        return tokenizer.apply_chat_template(
            conversation.messages, tools=conversation.tools, **conversation.arguments, **options
        )

    try:
        return within(SECONDS, applied)
    except TimeoutError as error:
        raise TemplateRefusal(f"the chat template does not come to an end: {error}") from error
    except Exception as error:  # whatever a template raises, it is about this conversation
        message = str(error).strip() or type(error).__name__
        reason = message if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: {message}"
        raise TemplateRefusal(f"the chat template refuses it: {reason}") from error
