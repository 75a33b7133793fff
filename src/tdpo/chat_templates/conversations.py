"""Messages together with what their chat template is given besides: tools and named arguments."""

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
        """As `template_columns`."""
        return template_columns({TOOLS: self.tools, ARGUMENTS: dict(self.arguments)})


def template_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Those columns of a row that its chat template is given beside the messages; none where there is nothing."""
    return {name: columns[name] for name in (TOOLS, ARGUMENTS) if columns.get(name)}


# What can be sampled from: plain text, messages alone, or messages with tools and arguments.
PromptInput = Text | Conversation


def prompt_input(text: Text, columns: Mapping[str, Any], name: str) -> PromptInput:
    """A prompt with the columns `tools` and `chat_template_kwargs` of its row, as what is to be rendered.

    Raises ValueError, naming the prompt, where the two columns are not what a chat template takes, or stand beside
    plain text, which goes through no template.
    """
    given = template_columns(columns)
    if not given:
        return text
    checked, findings = check_template_options(given, plain=isinstance(text, str))
    if findings:
        hint = "; give the prompt as messages, or the column another name" if isinstance(text, str) else ""
        raise ValueError(f"prompt {name}: {findings[0].field}: {findings[0].reason} ({findings[0].text}){hint}")
    if isinstance(text, str) or not checked:
        return text
    return Conversation(list(text), checked.get(TOOLS), checked.get(ARGUMENTS) or {})
