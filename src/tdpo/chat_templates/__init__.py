"""Conversations and prompts as token ids: the one room that calls a tokenizer's chat template.

Preference rows, PPO's prompts, pair sampling, evaluation, a study and `tdpo generate` all come through here, so that what
is trained on is what is sampled from. What a template does is asked of it with small conversations, never looked up by name.
"""

from .conversations import Conversation, PromptInput, prompt_input
from .encoding import Encoder
from .ends import EndOfTurn, end_ids, end_of_turn
from .rendering import TemplateRefusal, render

__all__ = [
    "Conversation",
    "Encoder",
    "EndOfTurn",
    "PromptInput",
    "TemplateRefusal",
    "end_ids",
    "end_of_turn",
    "prompt_input",
    "render",
]
