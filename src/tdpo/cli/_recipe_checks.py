"""Checks of a recipe for `tdpo doctor`: everything that would make training fail, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _prompt_checks
from ._console import quiet_libraries
from ._environment_checks import environment_checks
from ._errors import explain, is_ours
from ._length_checks import layout, prompt_lengths
from ._machine_checks import Check
from ._memory_checks import memory_for_pairs, memory_for_prompts
from ._model_checks import model_checks, policy_checks, vocabulary_size
from ._place_checks import cache_room, device, packages, pairs_to_come, room, run_dir
from ._template_checks import template_checks
from ._time_checks import training_time

if TYPE_CHECKING:
    from ..batches import TokenizedPairs
    from ..config import AnyRecipe, Recipe


def recipe_checks(path: Path, overrides: Sequence[str], *, time: bool = False, devices: int = 1) -> Iterator[Check]:
    """Check the recipe itself, and then its run directory, packages, data and models, each independently.

    Memory is estimated for each of `devices` that share the weights. With `time`, measure a few steps of its model and
    estimate how long training takes.
    """
    from ..config import Recipe, RecipeError, load_recipe

    replaced: list[str] = []
    try:
        recipe = load_recipe(path, overrides, say=replaced.append)
    except RecipeError as error:
        yield Check("recipe", "problem", str(error))
        return
    yield Check("recipe", "ok", f"{path}: {_in_words(recipe)}")
    for sentence in replaced:
        yield Check("recipe", "note", sentence)
    quiet_libraries()
    is_of_pairs = isinstance(recipe, Recipe)
    if isinstance(recipe, Recipe):
        yield from pairs_to_come(recipe, path, overrides)
    for name, check in {**BOTH, **(_of_preferences(devices) if is_of_pairs else _of_own_responses(devices))}.items():
        yield from _run_check(name, check, recipe)
    if time:
        yield from _run_check("time", training_time, recipe)


def _in_words(recipe: AnyRecipe) -> str:
    from ..config import OnlineRecipe, Recipe

    if isinstance(recipe, Recipe):
        return f"{recipe.loss.name} on {recipe.model.name}, rows of {recipe.data.train}"
    model = recipe.model.name
    source = f"prompts of {recipe.prompts.train}" if recipe.prompts else "prompts of an environment"
    if isinstance(recipe, OnlineRecipe):
        return f"{recipe.loss.name} on {model}, own responses to {source}"
    kl = recipe.kl
    return f"PPO on {model}, {source}, {kl.form} {kl.direction} KL in the {kl.place}"


def _run_check(name: str, check: Callable[[Any], Iterator[Check]], recipe: AnyRecipe) -> Iterator[Check]:
    """Yield the results of `check`. An error that it raises becomes a problem."""
    try:
        yield from check(recipe)
    except Exception as error:
        text = explain(error)[0]
        yield Check(name, "problem", text if is_ours(error) else f"{text} (unexpected)")


def _environment(recipe: Recipe) -> Iterator[Check]:
    if recipe.environment is None:
        if recipe.data.eval is None and recipe.data.eval_fraction is None:
            yield Check("environment", "note", "none, and no held-out rows: there is nothing to evaluate on")
        else:
            yield Check("environment", "ok", "none: an evaluation judges held-out pairs, not generations")
        return
    yield from environment_checks(recipe.environment)


def _model(recipe: Recipe) -> Iterator[Check]:
    names = {"model.name": recipe.model.name, "model.reference": recipe.model.reference}
    yield from model_checks(names, recipe.model.trust_remote_code)
    yield from policy_checks(recipe.model, recipe.training.precision)


def _data(recipe: Recipe, devices: int) -> Iterator[Check]:
    """Read and tokenise the rows as in training, and check them against the models."""
    from ..models import configuration_of, load_tokenizer, model_facts
    from ..recipe_data.pairs import files_of_pairs_to_make, read_data, tokenize_rows
    from ..scoring.fitting import check_ids, check_lengths

    to_make = files_of_pairs_to_make(recipe)
    if "data.train" in to_make:
        if pairs := _pairs_that_will_be(recipe):
            yield from _updates(recipe, pairs, "at most ")
        return
    if to_make:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": None})})
    data = read_data(recipe)
    trust = recipe.model.trust_remote_code
    for key, rows in (("data.train", data.train), ("data.eval", data.eval)):
        if rows is not None:
            skipped = f", {len(rows.problems)} problems skipped" if rows.problems else ""
            yield Check(key, "note" if skipped else "ok", f"{rows.source}: {len(rows)} rows{skipped}")
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
    facts = model_facts(recipe.model.name, tokenizer, trust_remote_code=trust)
    vocabulary = vocabulary_size(recipe.model.name, trust)
    readers = [name for name in (recipe.model.name, recipe.model.reference) if name is not None]
    configs = [configuration_of(name, trust_remote_code=trust) for name in readers]
    for key, rows in (("data.train", data.train), ("data.eval", data.eval)):
        if rows is not None:
            tokenized = tokenize_rows(rows, recipe, tokenizer, facts)
            check_lengths(tokenized.pairs, configs)
            if vocabulary is not None:
                check_ids(tokenized.pairs, vocabulary)
            yield from _lengths(key, tokenized)
            if key == "data.train":
                yield from layout(recipe, tokenized.pairs, configs)
                yield from _updates(recipe, len(tokenized.pairs))
                yield from cache_room(recipe, tokenized.pairs, getattr(configs[-1], "hidden_size", None))
                yield from memory_for_pairs(recipe, tokenized.pairs, devices)


def _lengths(key: str, tokenized: TokenizedPairs) -> Iterator[Check]:
    from ..batches import sequence_length

    lengths = sorted(map(sequence_length, tokenized.pairs))
    shares = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}
    text = ", ".join(f"{name} {lengths[min(len(lengths) - 1, int(s * len(lengths)))]}" for name, s in shares.items())
    yield Check(f"{key} length", "ok", f"tokens of prompt and longer response: {text}, longest {lengths[-1]}")
    for sentence in tokenized.report.warnings():
        yield Check(f"{key} tokens", "note", sentence)


def _pairs_that_will_be(recipe: Recipe) -> int:
    """Return the most pairs that `tdpo pairs` makes of the recipe's environment."""
    assert recipe.environment is not None
    try:
        return len(recipe.environment.load().train) * recipe.sampling.pairs_per_prompt
    except Exception:  # functions of the user's own raise anything; the check of the environment reports it
        return 0


def _updates(recipe: Recipe, pairs: int, about: str = "about ") -> Iterator[Check]:
    from ..workflows.train import updates_of

    training = recipe.training
    updates = updates_of(training, pairs)
    yield Check("length", "ok", f"{about}{updates} update{'s' if updates != 1 else ''} of {training.batch_size} pairs")
    if 0 < pairs < training.batch_size:
        yield Check("length", "note", f"{pairs} pairs are fewer than training.batch_size {training.batch_size}")
    yield from room(recipe, updates)


BOTH: dict[str, Callable[[Any], Iterator[Check]]] = {"run_dir": run_dir, "device": device, "packages": packages}


def _of_preferences(devices: int) -> dict[str, Callable[[Any], Iterator[Check]]]:
    return {
        "environment": _environment,
        "model": _model,
        "data": partial(_data, devices=devices),
        "prompts rendered": template_checks,
    }


def _of_own_responses(devices: int) -> dict[str, Callable[[Any], Iterator[Check]]]:
    return {
        "environment": _prompt_checks.environment,
        "prompts": _prompt_checks.prompts,
        "rewards": _prompt_checks.rewards,
        "model": _prompt_checks.models,
        "prompts rendered": template_checks,
        "prompt lengths": prompt_lengths,
        "memory": partial(memory_for_prompts, devices=devices),
    }
