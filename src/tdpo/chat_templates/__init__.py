"""Conversations and prompts as token ids: the one room that calls a tokenizer's chat template.

Preference rows, PPO's prompts, pair sampling, evaluation, a study and `tdpo generate` all come through here, so that
what is trained on is what is sampled from. What a template does is asked of it with small conversations, never looked
up by name.
"""

from .conversations import Conversation, PromptInput, prompt_input, template_columns
from .encoding import Encoder
from .ends import EndOfTurn, end_ids, end_of_turn, without_tail
from .prefixes import prefix_length
from .rendering import TemplateRefusal, render
from .stopping import Stopping

__all__ = [
    "Conversation",
    "Encoder",
    "EndOfTurn",
    "PromptInput",
    "Stopping",
    "TemplateRefusal",
    "end_ids",
    "end_of_turn",
    "prefix_length",
    "prompt_input",
    "render",
    "template_columns",
    "without_tail",
]
