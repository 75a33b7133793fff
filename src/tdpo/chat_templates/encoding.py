"""Texts and conversations as token ids, with one beginning-of-sequence token at most."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from tdpo.preferences import Text

from .conversations import Conversation, PromptInput
from .rendering import apply, render
from .tool_arguments import has_objects, wants_text, with_text

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Encoder:
    """A tokenizer, and what is found out about it only once.

    `begun_twice` counts the texts that had a second beginning-of-sequence token, which was removed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.begun_twice = 0

    @cached_property
    def _wrapping(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after every text."""
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def plain(self, text: str, *, is_prompt: bool = False) -> list[int]:
        """The ids of a text; those of a prompt are without the tokens that the tokenizer puts after every text."""
        ids = self._begun_once(list(self.tokenizer(text)["input_ids"]))
        behind = self._wrapping[1] if is_prompt else []
        return ids[: -len(behind)] if behind and ids[-len(behind) :] == behind else ids

    def rendered(self, text: str) -> list[int]:
        """The ids of a text that a chat template wrote; the tokenizer adds no special tokens to it."""
        return self._begun_once(list(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    def prompt(self, prompt: PromptInput) -> list[int]:
        """The ids of a prompt up to where the response begins.

        Raises TemplateRefusal; ValueError for messages where the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            return self.plain(prompt, is_prompt=True)
        return self.rendered(self.render(prompt, generation_prompt=True))

    def render(self, prompt: Conversation | Text, *, generation_prompt: bool = False) -> str:
        """The text of a conversation. Raises as `prompt`."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "is a conversation, but the tokenizer has no chat template. Use an instruct model's tokenizer, set "
                "tokenizer.chat_template, or bring plain text."
            )
        assert not isinstance(prompt, str)
        conversation = prompt if isinstance(prompt, Conversation) else Conversation(prompt)
        return render(self.tokenizer, self._as_taken(conversation), generation_prompt=generation_prompt)

    @cached_property
    def _takes_text(self) -> bool:
        return wants_text(self.tokenizer)

    def _as_taken(self, conversation: Conversation) -> Conversation:
        """The conversation with the arguments of tool calls as the template takes them: objects, or JSON text."""
        return with_text(conversation) if has_objects(conversation) and self._takes_text else conversation

    def generation_mask(self, conversation: Conversation) -> tuple[list[int], list[int]] | None:
        """The ids of a conversation, and 1 for each that the template marks as generated; None where it marks none."""
        template = self.tokenizer.get_chat_template(tools=conversation.tools)
        if not GENERATION.search(template):
            return None
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        masked = apply(self.tokenizer, self._as_taken(conversation), options)
        ids, mask = list(masked["input_ids"]), list(masked["assistant_masks"])
        begun = self._begun_once(ids)
        return begun, mask[len(ids) - len(begun) :]

    def _begun_once(self, ids: list[int]) -> list[int]:
        """The ids with one beginning-of-sequence token at most: a text that a template wrote often has one already."""
        start = self._wrapping[0]
        bos = getattr(self.tokenizer, "bos_token_id", None)
        if not start and bos is not None:
            start = [bos]
        count = len(start)
        if not count or ids[: 2 * count] != [*start, *start]:
            return ids
        self.begun_twice += 1
        while ids[: 2 * count] == [*start, *start]:
            ids = ids[count:]
        return ids
