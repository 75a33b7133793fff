"""Checks of a recipe for `tdpo doctor`: everything that would make training fail, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _ppo_checks
from ._console import quiet_libraries
from ._environment_checks import environment_checks
from ._errors import explain, is_ours
from ._length_checks import layout, prompt_lengths
from ._machine_checks import Check
from ._model_checks import model_checks, policy_checks, vocabulary_size
from ._template_checks import template_checks

if TYPE_CHECKING:
    from ..batches import TokenizedPairs
    from ..config import AnyRecipe, Recipe

# The module that a value of training.report_to or training.optimizer needs.
NEEDED_MODULES = {
    "adamw_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "swanlab": "swanlab",
}


def recipe_checks(path: Path, overrides: Sequence[str]) -> Iterator[Check]:
    """Check the recipe itself, and then its run directory, packages, data and models, each independently."""
    from ..config import PPORecipe, RecipeError, load_recipe

    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        yield Check("recipe", "problem", str(error))
        return
    yield Check("recipe", "ok", f"{path}: {_in_words(recipe)}")
    quiet_libraries()
    for name, check in {**BOTH, **(PPO if isinstance(recipe, PPORecipe) else PREFERENCES)}.items():
        yield from _run_check(name, check, recipe)


def _in_words(recipe: AnyRecipe) -> str:
    from ..config import Recipe

    if isinstance(recipe, Recipe):
        return f"{recipe.loss.name} on {recipe.model.name}, rows of {recipe.data.train}"
    kl, model = recipe.kl, recipe.model.name
    source = f"prompts of {recipe.prompts.train}" if recipe.prompts else "prompts of an environment"
    return f"PPO on {model}, {source}, {kl.form} {kl.direction} KL in the {kl.place}"


def _run_check(name: str, check: Callable[[Any], Iterator[Check]], recipe: AnyRecipe) -> Iterator[Check]:
    """Yield the results of `check`. An error that it raises becomes a problem."""
    try:
        yield from check(recipe)
    except Exception as error:
        text = explain(error)[0]
        yield Check(name, "problem", text if is_ours(error) else f"{text} (unexpected)")


def _run_dir(recipe: AnyRecipe) -> Iterator[Check]:
    from ..runs import RunDirectory

    run = RunDirectory(recipe.run_dir)
    reason = run.why_not_new()
    if reason is None:
        yield Check("run_dir", "ok", f"{run.path} is free")
    else:
        yield Check("run_dir", "note" if run.is_run() else "problem", reason)


def _packages(recipe: AnyRecipe) -> Iterator[Check]:
    from ..config import Recipe

    settings = recipe.training if isinstance(recipe, Recipe) else recipe.ppo
    for value in (settings.optimizer, *settings.report_to):
        module = NEEDED_MODULES.get(value)
        if module and find_spec(module) is None:
            yield Check("packages", "problem", f"{value} needs {module}; pip install {module}")


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


def _data(recipe: Recipe) -> Iterator[Check]:
    """Read and tokenise the rows as in training, and check them against the models."""
    from ..models import configuration_of, load_tokenizer, model_facts
    from ..recipe_data.pairs import read_data, tokenize_rows
    from ..scoring.fitting import check_ids, check_lengths

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


def _lengths(key: str, tokenized: TokenizedPairs) -> Iterator[Check]:
    from ..batches import sequence_length

    lengths = sorted(map(sequence_length, tokenized.pairs))
    shares = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}
    text = ", ".join(f"{name} {lengths[min(len(lengths) - 1, int(s * len(lengths)))]}" for name, s in shares.items())
    yield Check(f"{key} length", "ok", f"tokens of prompt and longer response: {text}, longest {lengths[-1]}")
    for sentence in tokenized.report.warnings():
        yield Check(f"{key} tokens", "note", sentence)


def _updates(recipe: Recipe, pairs: int) -> Iterator[Check]:
    training = recipe.training
    steps = training.max_steps or ceil(pairs / training.batch_size * (training.epochs or 1))
    yield Check("length", "ok", f"about {steps} updates of {training.batch_size} pairs")
    if pairs < training.batch_size:
        yield Check("length", "note", f"{pairs} pairs are fewer than training.batch_size {training.batch_size}")


BOTH: dict[str, Callable[[Any], Iterator[Check]]] = {"run_dir": _run_dir, "packages": _packages}
PREFERENCES: dict[str, Callable[[Any], Iterator[Check]]] = {
    "environment": _environment,
    "model": _model,
    "data": _data,
    "prompts rendered": template_checks,
}
PPO: dict[str, Callable[[Any], Iterator[Check]]] = {
    "environment": _ppo_checks.environment,
    "prompts": _ppo_checks.prompts,
    "rewards": _ppo_checks.rewards,
    "model": _ppo_checks.models,
    "prompts rendered": template_checks,
    "prompt lengths": prompt_lengths,
}
