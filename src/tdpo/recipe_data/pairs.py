"""The pairs that a recipe trains and evaluates on, read and validated before any model is loaded."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from ..batches import TokenizedPairs, tokenize_pairs
from ..chat_templates import template_columns
from ..config import Data, Recipe
from ..models import ModelFacts
from ..preferences import PreferenceRow, Preferences, count_repeated, load_preferences, read_for


@dataclass(frozen=True)
class RecipeData:
    """The training rows of a recipe and its held-out rows, None where it has none."""

    train: Preferences
    eval: Preferences | None


def read_data(recipe: Recipe) -> RecipeData:
    """Read and validate the recipe's rows, and hold out `data.eval_fraction` of their prompts, drawn with the seed.

    Raises:
        BadPreferences, UnreadablePreferences: see `tdpo.preferences`.
        FileNotFoundError: a file does not exist; the message begins with the key that names it.
        ValueError: `data.eval_fraction` leaves no prompts to train on or none to hold out.
    """
    data = recipe.data
    for key, file in files_of_pairs_to_make(recipe).items():
        split = " --split held_out" if key == "data.eval" else ""
        raise FileNotFoundError(
            f"{key}: {file} is not there yet. Make it of the environment's prompts: `tdpo pairs RECIPE{split}`, with "
            "this recipe, or name a file that is there."
        )
    train = _load("data.train", data.train, data.split or "train", data)
    if data.eval_fraction is None:
        return RecipeData(train, read_held_out(recipe))
    return _hold_out(train, data.eval_fraction, recipe.seed)


def read_held_out(recipe: Recipe) -> Preferences | None:
    """Read and validate the recipe's held-out rows alone, None where it has none; errors are those of `read_data`.

    The training rows are read only where the held-out rows are taken from them.
    """
    data = recipe.data
    if data.eval is None:
        return None if data.eval_fraction is None else read_data(recipe).eval
    return _load("data.eval", data.eval, data.eval_split or "test", data)


def files_of_pairs_to_make(recipe: Recipe) -> dict[str, str]:
    """The files of pairs, by key, that are not there and that `tdpo pairs` makes of the recipe's environment."""
    if recipe.environment is None:
        return {}
    files = {"data.train": recipe.data.train, "data.eval": recipe.data.eval}
    return {
        key: file
        for key, file in files.items()
        if file is not None and file.endswith(".jsonl") and not Path(file).expanduser().exists()
    }


def _load(key: str, source: str, split: str, data: Data) -> Preferences:
    try:
        with read_for("data"):
            return load_preferences(source, split=split, on_bad_rows=data.on_bad_rows, repeated_rows=data.repeated_rows)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error


def _hold_out(rows: Preferences, fraction: float, seed: int) -> RecipeData:
    """Hold out whole prompts. All pairs of a prompt stay on one side, or the held-out rows would not be new."""
    prompts = list(dict.fromkeys(prompt_key(row) for row in rows.rows))
    count = round(len(prompts) * fraction)
    if not 0 < count < len(prompts):
        raise ValueError(
            f"data.eval_fraction={fraction} of {len(prompts)} different prompts holds out {count}; choose a fraction "
            "that leaves prompts on both sides"
        )
    held_out_prompts = set(random.Random(f"{seed}/held-out").sample(prompts, count))
    train = [row for row in rows.rows if prompt_key(row) not in held_out_prompts]
    held_out = [row for row in rows.rows if prompt_key(row) in held_out_prompts]
    name = f"{rows.source} (held out {fraction:g} of the prompts)"
    repeated = [count_repeated(part) if rows.repeated else 0 for part in (train, held_out)]
    return RecipeData(
        Preferences(train, rows.problems, rows.source, repeated[0]), Preferences(held_out, [], name, repeated[1])
    )


def prompt_key(row: PreferenceRow) -> str:
    """Return a key that is equal for equal prompts: the text and the other arguments of the chat template."""
    columns = template_columns(row.extra)
    return json.dumps([row.prompt, columns] if columns else row.prompt, sort_keys=True, default=str)


def tokenize_data(
    data: RecipeData, recipe: Recipe, tokenizer: object, facts: ModelFacts
) -> tuple[TokenizedPairs, TokenizedPairs | None]:
    """Tokenise the training rows and the held-out rows. Their reports say what was cut or dropped."""
    held_out = None if data.eval is None else tokenize_rows(data.eval, recipe, tokenizer, facts)
    return tokenize_rows(data.train, recipe, tokenizer, facts), held_out


def tokenize_rows(rows: Preferences, recipe: Recipe, tokenizer: object, facts: ModelFacts) -> TokenizedPairs:
    """Tokenise rows as the recipe says. Training, evaluation and `tdpo doctor` all use this function.

    Raises what `tokenize_pairs` raises.
    """
    limit = facts.max_length(recipe.data.max_length)
    with read_for("data"):
        return tokenize_pairs(
            rows.rows,
            tokenizer,
            limit,
            end_ids=facts.end_token_ids,
            on_bad_rows=recipe.data.on_bad_rows,
            counted_turns=recipe.data.counted_turns,
        )
