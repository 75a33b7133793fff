"""Messages together with the other inputs of their chat template: tools and named arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tdpo.preferences import Message, Text
from tdpo.preferences.fields import check_template_options

TOOLS, ARGUMENTS = "tools", "chat_template_kwargs"


@dataclass(frozen=True)
class Conversation:
    """Messages, the tools that the model may call, and further arguments of the chat template."""

    messages: list[Message]
    tools: list[Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def followed_by(self, turns: Sequence[Message]) -> Conversation:
        """The same conversation with more turns."""
        return replace(self, messages=[*self.messages, *turns])

    def columns(self) -> dict[str, Any]:
        """The columns of a row that carry the tools and arguments, as `template_columns` gives them."""
        return template_columns({TOOLS: self.tools, ARGUMENTS: dict(self.arguments)})


def template_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that are inputs of its chat template beside the messages, without empty ones."""
    return {name: columns[name] for name in (TOOLS, ARGUMENTS) if columns.get(name)}


# What can be sampled from: plain text, messages alone, or messages with tools and arguments.
PromptInput = Text | Conversation


def prompt_input(text: Text, columns: Mapping[str, Any], name: str) -> PromptInput:
    """A prompt together with the columns `tools` and `chat_template_kwargs` of its row.

    Raises ValueError, naming the prompt, where a chat template cannot take the two columns, or where they stand beside
    plain text, for which no template is used.
    """
    options = template_columns(columns)
    if not options:
        return text
    valid_options, findings = check_template_options(options, plain=isinstance(text, str))
    if findings:
        hint = "; give the prompt as messages, or the column another name" if isinstance(text, str) else ""
        raise ValueError(f"prompt {name}: {findings[0].field}: {findings[0].reason} ({findings[0].text}){hint}")
    if isinstance(text, str) or not valid_options:
        return text
    return Conversation(list(text), valid_options.get(TOOLS), valid_options.get(ARGUMENTS) or {})
