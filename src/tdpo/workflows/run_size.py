"""What a run computes, in tokens: means over some of its prompts or rows, for estimates of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from ..batches import counted_tokens
from ..chat_templates import prompt_input
from ..config import OwnResponsesRecipe, Recipe
from ..models import load_tokenizer, model_facts
from ..preferences import Preferences
from ..recipe_data.pairs import read_data, tokenize_rows
from ..recipe_data.prompts import read_recipe_prompts
from ..sampling.sampler import encode_prompts
from .trainer_arguments import new_tokens_of

FEW = 50  # prompts or rows whose mean length stands for all


@dataclass(frozen=True)
class RunSize:
    """What a run learns from.

    Attributes:
        prompts: some prompts, as the sampler takes them.
        prompt: mean length of a prompt, in tokens.
        response: mean length of a response, in tokens; of sampled ones the longest.
        pairs: how many pairs there are; 0 for own responses, whose recipe says how many responses it draws.
    """

    prompts: Sequence[Any]
    prompt: float
    response: float
    pairs: int = 0


def size_of_pairs(recipe: Recipe, rows: Preferences | None = None) -> RunSize:
    """The size of a run on preferences, with its own rows or others. Raises as reading and tokenising them does."""
    if rows is None:
        rows = read_data(recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": None})})).train
    trust = recipe.model.trust_remote_code
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
    facts = model_facts(recipe.model.name, tokenizer, trust_remote_code=trust)
    few = rows.rows[:FEW]
    pairs = tokenize_rows(Preferences(few, [], rows.source), recipe, tokenizer, facts).pairs
    return RunSize(
        prompts=[prompt_input(row.prompt, row.extra, f"{row.source}:{row.row}") for row in few],
        prompt=mean(len(pair.prompt_ids) for pair in pairs),
        response=mean(sum(counted_tokens(pair)) / 2 for pair in pairs),
        pairs=len(rows),
    )


def size_of_prompts(recipe: OwnResponsesRecipe) -> RunSize:
    """The size of a run on own responses. Raises as reading and rendering its prompts does."""
    train, _, _ = read_recipe_prompts(recipe)
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    few = [prompt.rendered_from for prompt in train[:FEW]]
    return RunSize(few, mean(map(len, encode_prompts(tokenizer, few))), new_tokens_of(recipe))
