"""Conversations and prompts as token ids: the only room that calls a tokenizer's chat template.

Preference rows, prompts of PPO, pair sampling, evaluation, a study and `tdpo generate` all use it, so that training and
sampling see the same prompts. How a template behaves is found out with small conversations; there is no list of names.
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
