"""Digests of the inputs of a run beside its recipe (rows, weights, functions), and their comparison at a resumption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..batches import TokenizedPair
from ..config import AnyRecipe, PPORecipe, Recipe
from ..environments import Prompt
from ..models.digests import model_digests
from ..reference_cache.fingerprint import tokens_digest
from ..rewards.functions import digest_of
from ..runs import RunDirectory
from ..runs.inputs import INPUTS_FILE, ChangedInputs, changed_inputs, file_digest, file_of_function, in_words, short

PAIRS, HELD_OUT_PAIRS = "training pairs", "held-out pairs"
PROMPTS, HELD_OUT_PROMPTS = "training prompts", "held-out prompts"


def pairs_inputs(train: Any, held_out: Any) -> dict[str, str]:
    """Return a digest of the tokenised training pairs and of each set of held-out pairs.

    `held_out` is a list of pairs, several lists by name, or None.
    """
    parts = held_out if isinstance(held_out, dict) else {"": held_out}
    sets = {PAIRS: train, **{f"{HELD_OUT_PAIRS}{name and ' '}{name}": pairs for name, pairs in parts.items()}}
    return {name: digest_of_pairs(pairs) for name, pairs in sets.items() if pairs is not None}


def prompts_inputs(train: Sequence[Prompt], held_out: Sequence[Prompt] | None) -> dict[str, str]:
    """Return a digest of the training prompts and of the held-out prompts."""
    sets = {PROMPTS: train, HELD_OUT_PROMPTS: held_out}
    return {name: digest_of_prompts(prompts) for name, prompts in sets.items() if prompts}


def digest_of_pairs(pairs: Sequence[TokenizedPair]) -> str:
    """Return the number of pairs and a digest of their tokens, which depends on their order."""
    total = hashlib.sha256()
    for pair in pairs:
        total.update(tokens_digest(pair))
    return f"{len(pairs)} pairs ({short(total.hexdigest())})"


def digest_of_prompts(prompts: Sequence[Prompt]) -> str:
    """Return the number of prompts and a digest of them with their columns, which depends on their order."""
    return f"{len(prompts)} prompts ({short(digest_of(prompts))})"


def recipe_inputs(recipe: AnyRecipe) -> dict[str, str]:
    """Return digests of the models and of the files of functions that a recipe names, by key and name."""
    named: dict[str, str | None] = {"model.name": recipe.model.name, "model.reference": recipe.model.reference}
    functions: dict[str, str | None] = {}
    if isinstance(recipe, PPORecipe):
        named["ppo.value_model"] = recipe.ppo.value_model
    if not isinstance(recipe, Recipe):
        for n, reward in enumerate(recipe.rewards or ()):
            named[f"rewards[{n}].model"] = reward.model
            functions[f"rewards[{n}].function"] = reward.function
        if recipe.environment is not None:
            functions["environment.reward"] = recipe.environment.reward
    digests = {
        f"{key} ({name}), {part}": short(digest)
        for key, name in named.items()
        if name is not None
        for part, digest in model_digests(name).items()
    }
    for key, function in functions.items():
        file = file_of_function(function)
        if file is not None and Path(file).expanduser().is_file():
            digests[f"{key}, the file {file}"] = short(file_digest(Path(file).expanduser()))
    return digests


def settle_inputs(
    run: RunDirectory, checkpoint: Path, inputs: Mapping[str, str], *, accept: bool, say: Callable[[str], None]
) -> dict[str, list[str]]:
    """Compare the inputs of a resumption with those of its checkpoint, and return the differences that were accepted.

    Each accepted change is passed to `say`, and all are recorded with this resumption in the run's environment.json.

    Raises:
        ChangedInputs: an input differs and `accept` is False.
    """
    if not (checkpoint / INPUTS_FILE).exists():
        say(
            f"{checkpoint.name} was written by an earlier version, which kept no digests: whether rows, weights and "
            "functions are still those that it was trained with cannot be checked."
        )
    changed = changed_inputs(checkpoint, inputs)
    if changed and not accept:
        raise ChangedInputs(checkpoint, changed)
    for line in in_words(changed):
        say(f"Accepted, though {checkpoint.name} was trained with another: {line}.")
    if changed:
        run.note_resumption(accepted_changes=changed)
    return changed
