"""Checks of the prompts, rewards and models of a recipe that learns from own responses, for `tdpo doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._environment_checks import environment_checks, try_reward
from ._errors import explain, is_ours
from ._machine_checks import Check
from ._model_checks import model_checks, policy_checks
from ._place_checks import room

if TYPE_CHECKING:
    from ..config import OwnResponsesRecipe
    from ..environments import Prompt


def environment(recipe: OwnResponsesRecipe) -> Iterator[Check]:
    """Check the environment, if the recipe has one, and how many of its prompts an iteration draws."""
    if recipe.environment is None:
        return
    yield from environment_checks(recipe.environment)
    loaded = recipe.environment.load()
    yield from _seen("environment", loaded.train, loaded.held_out)
    yield from _length(recipe, len(loaded.train))


def prompts(recipe: OwnResponsesRecipe) -> Iterator[Check]:
    """Check the files of prompts, if the recipe names any. They are read as in training."""
    from ..environments import load_prompts
    from ..preferences import read_for

    if recipe.prompts is None:
        return
    on_bad_rows = recipe.prompts.on_bad_rows
    read: dict[str, list[Prompt]] = {}
    for key, source, split in (("train", recipe.prompts.train, "train"), ("eval", recipe.prompts.eval, "test")):
        if source is None:
            continue
        with read_for("prompts"):
            file = load_prompts(source, split=split, on_bad_rows=on_bad_rows)
        read[key] = file.prompts
        skipped = f", {len(file.problems)} problems skipped" if file.problems else ""
        columns = ", ".join(file.prompts[0].columns) or "none"
        text = f"{source}: {len(file.prompts)} prompts{skipped}; columns for the reward: {columns}"
        yield Check(f"prompts.{key}", "note" if skipped else "ok", text)
        if key == "train":
            yield from _length(recipe, len(file.prompts))
    yield from _seen("prompts.eval", read.get("train", []), read.get("eval", []))


def rewards(recipe: OwnResponsesRecipe) -> Iterator[Check]:
    """Load reward functions and reward models as in training, and try them on the first prompts."""
    from dataclasses import replace

    from ..models import load_tokenizer
    from ..models.devices import device_of
    from ..recipe_data.prompts import part_of_recipe, read_recipe_prompts

    if not recipe.rewards:
        return
    try:
        train, held_out, _ = read_recipe_prompts(recipe)
    except (OSError, ValueError):  # the check of the prompts reports it
        train, held_out = [], []
    try:
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):  # the check of the models reports it
        tokenizer = None
    try:
        device = device_of(recipe.model.device)
    except ValueError:  # the check of the device reports it
        device = device_of("cpu")
    for number, entry in enumerate(recipe.rewards):
        key = f"rewards[{number}]" + ("" if entry.function else ".model")
        try:
            part = part_of_recipe(entry, tokenizer, recipe.model.trust_remote_code, device)
            environment = replace(part.environment, max_new_tokens=recipe.rollouts.max_new_tokens or 1)
            trial = try_reward(environment, train, held_out) if train else "not tried, as there are no prompts"
        except Exception as error:
            yield Check(key, "problem", explain(error)[0] + ("" if is_ours(error) else " (unexpected)"))
        else:
            yield Check(key, "ok", f"{entry.function or entry.model}, weight {entry.weight:g}: {trial}")


def models(recipe: OwnResponsesRecipe) -> Iterator[Check]:
    """Check policy, reference and critic. Reward models are checked with the rewards."""
    from ..config import PPORecipe
    from ..models import outline_causal_lm
    from ..workflows.prerequisites import check_critic

    names = {"model.name": recipe.model.name, "model.reference": recipe.model.reference}
    if isinstance(recipe, PPORecipe):
        names["ppo.value_model"] = recipe.ppo.value_model
    yield from model_checks(names, recipe.model.trust_remote_code)
    yield from policy_checks(recipe.model, recipe.optimization.precision)
    policy = outline_causal_lm(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    if policy is not None:
        check_critic(recipe, policy)
    yield from room(recipe, recipe.optimization.iterations)


def _seen(key: str, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> Iterator[Check]:
    from ..environments import seen_prompts

    if sentence := seen_prompts(train, held_out):
        yield Check(key, "note", sentence)


def _length(recipe: OwnResponsesRecipe, available: int) -> Iterator[Check]:
    from ..config import PPORecipe
    from ..records.metric_names import counted

    rollouts, optimization = recipe.rollouts, recipe.optimization
    per_iteration = rollouts.completions // rollouts.samples_per_prompt
    if isinstance(recipe, PPORecipe):
        unit, passes = "completion", recipe.ppo.epochs
    else:
        unit, passes = "pair", recipe.online.passes
    text = (
        f"{counted(recipe.updates, 'update')} of {counted(optimization.minibatch_size or 0, unit)}: "
        f"{counted(optimization.iterations, 'iteration')} of {counted(rollouts.completions, 'completion')} to "
        f"{counted(per_iteration, 'prompt')}, {counted(passes, 'pass', 'passes')} each"
    )
    yield Check("length", "ok", text)
    if available < per_iteration:
        more = f"an iteration asks {per_iteration} prompts and there are {available}: it asks them more than once"
        yield Check("length", "note", more)
