"""The rows a recipe trains and evaluates on, read and validated before anything heavy loads."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Literal

from ..batches import TokenizedPairs, tokenize_pairs
from ..config import Recipe
from ..preferences import PreferenceRow, Preferences, load_preferences


@dataclass(frozen=True)
class RecipeData:
    train: Preferences
    eval: Preferences | None


def read_data(recipe: Recipe) -> RecipeData:
    """Read and validate the recipe's rows; `data.eval_fraction` of their prompts are held out, drawn with the seed.

    Raises:
        BadPreferences, UnreadablePreferences: see `tdpo.preferences`.
        FileNotFoundError: the same, with the key that names the file.
        ValueError: `data.eval_fraction` leaves one of the two sides empty.
    """
    data = recipe.data
    train = _load("data.train", data.train, data.split or "train", data.on_bad_rows)
    if data.eval is not None:
        return RecipeData(train, _load("data.eval", data.eval, data.eval_split or "test", data.on_bad_rows))
    if data.eval_fraction is None:
        return RecipeData(train, None)
    return _hold_out(train, data.eval_fraction, recipe.seed)


def _load(key: str, source: str, split: str, on_bad_rows: Literal["error", "skip"]) -> Preferences:
    try:
        return load_preferences(source, split=split, on_bad_rows=on_bad_rows)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error


def _hold_out(rows: Preferences, fraction: float, seed: int) -> RecipeData:
    """Hold out by prompt: pairs of one prompt stay on one side, or the held-out rows would not be new."""
    prompts = list(dict.fromkeys(_key(row) for row in rows.rows))
    count = round(len(prompts) * fraction)
    if not 0 < count < len(prompts):
        raise ValueError(
            f"data.eval_fraction={fraction} of {len(prompts)} different prompts holds out {count}; choose a fraction "
            "that leaves prompts on both sides"
        )
    chosen = set(random.Random(f"{seed}/held-out").sample(prompts, count))
    train = [row for row in rows.rows if _key(row) not in chosen]
    held_out = [row for row in rows.rows if _key(row) in chosen]
    name = f"{rows.source} (held out {fraction:g} of the prompts)"
    return RecipeData(Preferences(train, rows.problems, rows.source), Preferences(held_out, [], name))


def _key(row: PreferenceRow) -> str:
    return json.dumps(row.prompt, sort_keys=True, default=str)


def tokenize_data(
    data: RecipeData, tokenizer: object, max_length: int | None, end_ids: set[int]
) -> tuple[TokenizedPairs, TokenizedPairs | None]:
    """Both sides tokenised; what was cut or dropped is in their reports."""
    train = tokenize_pairs(data.train.rows, tokenizer, max_length, end_ids=end_ids)
    held_out = None
    if data.eval is not None:
        held_out = tokenize_pairs(data.eval.rows, tokenizer, max_length, end_ids=end_ids)
    return train, held_out
