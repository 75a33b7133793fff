"""Prompts and rewards of a recipe that learns from own responses, read and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..chat_templates import TemplateRefusal
from ..config import OwnResponsesRecipe
from ..config import Reward as RewardEntry
from ..environments import Environment, Prompt, PromptReward, drawn_prompts
from ..environments.function_loading import load_function
from ..environments.prompt_files import load_prompts
from ..models.devices import device_of
from ..preferences import read_for
from ..rewards.functions import Reward, Rewards, rewards_of, with_distinct_names
from ..sampling.sampler import encode_prompts


def environment_of(recipe: OwnResponsesRecipe, tokenizer: Any) -> Environment:
    """Return the prompts and the reward of a recipe, from its environment or from its files and functions.

    Raises:
        ValueError, RewardError, FileNotFoundError: prompts, functions or reward models cannot be read.
    """
    if recipe.environment is not None:
        return recipe.environment.load()
    train, held_out, _ = read_usable_prompts(recipe, tokenizer)
    rewards = recipe_rewards(recipe, tokenizer)
    assert recipe.prompts is not None
    return Environment(
        name=Path(recipe.prompts.train).stem,
        train=train,
        held_out=held_out,
        reward=rewards,
        reward_name="" if rewards is None else " + ".join(part.name for part in rewards.parts),
        max_new_tokens=recipe.rollouts.max_new_tokens or 1,
        description="prompts and rewards of a recipe",
    )


def read_recipe_prompts(recipe: OwnResponsesRecipe) -> tuple[list[Prompt], list[Prompt], dict[str, dict[str, Any]]]:
    """Read the prompts of a recipe.

    Returns the training prompts, the held-out prompts (perhaps none), and the description of both for data.json, which
    includes the skipped rows.

    Raises:
        BadPreferences, UnreadablePreferences, FileNotFoundError: see `load_prompts`.
        ValueError: there are fewer prompts to train on than `rollouts.prompts`.
    """
    if recipe.environment is not None:
        environment = recipe.environment.load()
        environment = replace(environment, train=_drawn(recipe, environment.train))
        files = {"train": environment.train, "eval": environment.held_out}
        descriptions = {name: _describe(environment.name, prompts, []) for name, prompts in files.items() if prompts}
        return environment.train, environment.held_out, descriptions
    source = recipe.prompts
    assert source is not None
    with read_for("prompts"):
        train = load_prompts(source.train, on_bad_rows=source.on_bad_rows)
    chosen = _drawn(recipe, train.prompts)
    descriptions = {"train": _describe(train.source, chosen, train.problems)}
    if source.eval is None:
        return chosen, [], descriptions
    with read_for("prompts"):
        held_out = load_prompts(source.eval, split="test", on_bad_rows=source.on_bad_rows)
    descriptions["eval"] = _describe(held_out.source, held_out.prompts, held_out.problems)
    return chosen, held_out.prompts, descriptions


def _drawn(recipe: OwnResponsesRecipe, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts that a run trains on: those that its seed draws, or all."""
    count = recipe.rollouts.prompts
    if count is None:
        return prompts
    if count > len(prompts):
        raise ValueError(
            f"rollouts.prompts is {count}, and there are {len(prompts)} prompts to train on; lower it, or set it to "
            "null for all of them"
        )
    return drawn_prompts(prompts, count, recipe.seed)


def read_usable_prompts(
    recipe: OwnResponsesRecipe, tokenizer: Any
) -> tuple[list[Prompt], list[Prompt], dict[str, dict[str, Any]]]:
    """Read the prompts as `read_recipe_prompts` does, and check that the chat template renders them.

    If the recipe skips bad rows, prompts that the chat template refuses are left out, and the descriptions count them.

    Raises:
        TemplateRefusal, ValueError: a prompt cannot be rendered; the message names it. With `on_bad_rows: skip` it is
            raised only if no prompt would be left.
    """
    train, held_out, descriptions = read_recipe_prompts(recipe)
    skips = recipe.prompts is not None and recipe.prompts.on_bad_rows == "skip"
    usable_prompts = []
    for name, prompts in (("train", train), ("eval", held_out)):
        usable, refusals = _separate_refused(prompts, tokenizer, skips)
        if refusals:
            part = descriptions[name]
            descriptions[name] = {
                **part,
                "prompts": len(usable),
                "skipped": part["skipped"] + len(refusals),
                "problems": [*part["problems"], *refusals],
                "refused_by_template": len(refusals),
            }
        usable_prompts.append(usable)
    return usable_prompts[0], usable_prompts[1], descriptions


def _separate_refused(prompts: list[Prompt], tokenizer: Any, skips: bool) -> tuple[list[Prompt], list[str]]:
    """Return the prompts that the chat template renders, and the messages about those that it refuses."""
    usable, refusals, first = [], [], None
    for prompt in prompts:
        try:
            encode_prompts(tokenizer, [prompt.rendered_from], [prompt.id])
        except TemplateRefusal as refusal:
            if not skips or isinstance(refusal.__cause__, TimeoutError):
                raise
            refusals.append(str(refusal))
            first = first or refusal
        else:
            usable.append(prompt)
    if first is not None and not usable:
        raise first
    return usable, refusals


def _describe(source: str, prompts: list[Prompt], problems: Sequence[Any]) -> dict[str, Any]:
    return {
        "source": source, "prompts": len(prompts), "skipped": len(problems), "problems": [str(p) for p in problems],
    }  # fmt: skip


def recipe_rewards(recipe: OwnResponsesRecipe, tokenizer: Any) -> Rewards | None:
    """Return the rewards of a recipe, with its reward models loaded; None for a recipe that learns without.

    Raises what `rewards_of` and `load_function` raise.
    """
    if recipe.environment is not None:
        environment = recipe.environment.load()
        # Only environments made of preference rows lack a reward, and only those made of a recipe's own prompts have
        # one with several parts.
        assert environment.reward is not None and not isinstance(environment.reward, PromptReward)
        return Rewards([Reward(environment.reward_name, environment.reward)])
    if recipe.rewards is None:  # the schema lets only distillation do without
        return None
    trust, device = recipe.model.trust_remote_code, device_of(recipe.model.device)
    return Rewards(with_distinct_names([part_of_recipe(entry, tokenizer, trust, device) for entry in recipe.rewards]))


def part_of_recipe(entry: RewardEntry, tokenizer: Any, trust_remote_code: bool, device: Any = "cpu") -> Reward:
    """Return the reward of one entry of a recipe's `rewards`, a model on `device`.

    Raises what `rewards_of` and `load_function` raise.
    """
    source = load_function(entry.function) if entry.function else str(entry.model)
    return rewards_of(source, [entry.weight], tokenizer, device=device, trust_remote_code=trust_remote_code).parts[0]
