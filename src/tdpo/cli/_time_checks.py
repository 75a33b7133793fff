"""The estimate of `tdpo doctor --time`: how long training takes, from a few steps measured on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._console import duration
from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import AnyRecipe


def training_time(recipe: AnyRecipe) -> Iterator[Check]:
    """Measure a few steps and estimate the training. Raises what reading the data or loading the model raises."""
    import torch

    from ..config import Recipe
    from ..recipe_data.pairs import files_of_pairs_to_make
    from ..workflows.measured_speed import learning_seconds, measure_speed
    from ..workflows.run_size import size_of_pairs, size_of_prompts

    if isinstance(recipe, Recipe) and "data.train" in files_of_pairs_to_make(recipe):
        yield Check("time", "note", "there are no pairs yet whose updates could be counted")
        return
    settings = recipe.optimization
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    if isinstance(recipe, Recipe):
        size = size_of_pairs(recipe)
        together, sampled = recipe.training.micro_batch_size or recipe.training.batch_size, 0
    else:
        size = size_of_prompts(recipe)
        together = recipe.optimization.micro_batch_size or recipe.rollouts.completions
        sampled = 0 if recipe.sampling.is_server else recipe.rollouts.batch_size
    speed = measure_speed(recipe.model, size.prompts, max(1, round(size.response)), pairs=together, responses=sampled)
    seconds = learning_seconds(recipe, speed, size)
    full = "" if isinstance(recipe, Recipe) else "; responses count at their full length"
    if not isinstance(recipe, Recipe) and recipe.sampling.is_server:
        full += ", and the server's time to draw them not at all"
    yield Check("time", "ok", f"training takes about {duration(seconds)} (measured now: {speed.description}{full})")
