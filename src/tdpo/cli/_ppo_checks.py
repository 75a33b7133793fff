"""What `tdpo doctor` says about where the prompts and the reward of a PPO recipe come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._environment_checks import environment_checks, tried
from ._errors import explain, is_ours
from ._machine_checks import Check
from ._model_checks import model_checks, policy_checks

if TYPE_CHECKING:
    from ..config import PPORecipe


def environment(recipe: PPORecipe) -> Iterator[Check]:
    """The environment, where the recipe has one, and what an iteration draws from it."""
    if recipe.environment is None:
        return
    yield from environment_checks(recipe.environment)
    yield from _length(recipe, len(recipe.environment.load().train))


def prompts(recipe: PPORecipe) -> Iterator[Check]:
    """The prompts of files, where the recipe names them, as training itself would read them."""
    from ..environments import load_prompts

    if recipe.prompts is None:
        return
    skipping = recipe.prompts.on_bad_rows
    for key, source, split in (("train", recipe.prompts.train, "train"), ("eval", recipe.prompts.eval, "test")):
        if source is None:
            continue
        found = load_prompts(source, split=split, on_bad_rows=skipping)
        skipped = f", {len(found.problems)} problems skipped" if found.problems else ""
        columns = ", ".join(found.prompts[0].columns) or "none"
        text = f"{source}: {len(found.prompts)} prompts{skipped}; columns for the reward: {columns}"
        yield Check(f"prompts.{key}", "note" if skipped else "ok", text)
        if key == "train":
            yield from _length(recipe, len(found.prompts))


def rewards(recipe: PPORecipe) -> Iterator[Check]:
    """Reward functions and reward models, made as training makes them and tried on the first prompts."""
    from dataclasses import replace

    from ..models import load_tokenizer
    from ..recipe_data.prompts import part_of_recipe, read_recipe_prompts

    if not recipe.rewards:
        return
    try:
        train, held_out, _ = read_recipe_prompts(recipe)
    except (OSError, ValueError):  # the check of the prompts says it
        train, held_out = [], []
    try:
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    except (OSError, ValueError):  # the check of the models says it
        tokenizer = None
    for number, entry in enumerate(recipe.rewards):
        key = f"rewards[{number}]" + ("" if entry.function else ".model")
        try:
            part = part_of_recipe(entry, tokenizer, recipe.model.trust_remote_code)
            environment = replace(part.environment, max_new_tokens=recipe.rollouts.max_new_tokens or 1)
            said = tried(environment, train, held_out) if train else "not tried, as there are no prompts"
        except Exception as error:
            yield Check(key, "problem", explain(error)[0] + ("" if is_ours(error) else " (unexpected)"))
        else:
            yield Check(key, "ok", f"{entry.function or entry.model}, weight {entry.weight:g}: {said}")


def models(recipe: PPORecipe) -> Iterator[Check]:
    """Policy, reference and critic; reward models are among the rewards."""
    names = {"model.name": recipe.model.name, "model.reference": recipe.model.reference}
    names["ppo.value_model"] = recipe.ppo.value_model
    yield from model_checks(names, recipe.model.dtype, recipe.model.trust_remote_code)
    yield from policy_checks(recipe.model)
    if recipe.ppo.value_model is not None:
        _check_critic(recipe, recipe.ppo.value_model)


def _check_critic(recipe: PPORecipe, value_model: str) -> None:
    """Raise what making the critic would raise."""
    from ..models import outline_causal_lm
    from ..training.online.critic import Critic

    trust = recipe.model.trust_remote_code
    policy, body = (outline_causal_lm(name, trust_remote_code=trust) for name in (recipe.model.name, value_model))
    if policy is not None and body is not None:
        Critic.of(policy, body)


def _length(recipe: PPORecipe, available: int) -> Iterator[Check]:
    ppo, rollouts = recipe.ppo, recipe.rollouts
    per_iteration = rollouts.completions // rollouts.samples_per_prompt
    text = (
        f"{recipe.updates} updates of {ppo.minibatch_size} completions: {ppo.iterations} iterations of "
        f"{rollouts.completions} completions to {per_iteration} prompts, {ppo.epochs} passes each"
    )
    yield Check("length", "ok", text)
    if available < per_iteration:
        more = f"an iteration asks {per_iteration} prompts and there are {available}: it asks them more than once"
        yield Check("length", "note", more)
