"""Held-out prompts that are also trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tdpo.chat_templates import template_columns
from tdpo.environments.environment import Prompt


def seen_prompts(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> str | None:
    """A sentence about the held-out prompts that are also trained on, which say nothing of new ones; None without any.

    Prompts are the same if their texts and what the chat template reads besides are.
    """
    trained = {_content(prompt) for prompt in train}
    known = sum(_content(prompt) in trained for prompt in held_out)
    if not known:
        return None
    return (
        f"{known} of {len(held_out)} held-out prompts are also trained on: their numbers are not those of new prompts."
    )


def _content(prompt: Prompt) -> str:
    return json.dumps([prompt.prompt, template_columns(prompt.columns)], sort_keys=True, default=str)
