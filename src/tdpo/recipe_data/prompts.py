"""The prompts and the rewards that a PPO recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..chat_templates import TemplateRefusal
from ..config import PPORecipe
from ..config.ppo_schema import Reward as RewardEntry
from ..environments import Environment, Prompt, PromptReward
from ..environments.function_loading import load_function
from ..environments.prompt_files import load_prompts
from ..rewards.functions import Reward, Rewards, rewards_of, told_apart
from ..sampling.sampler import encode_prompts


def environment_of(recipe: PPORecipe, tokenizer: Any) -> Environment:
    """The prompts and the reward of a PPO recipe, from its environment or from its files and functions.

    Raises:
        ValueError, RewardError, FileNotFoundError: as reading prompts, functions and reward models does.
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
        reward_name=" + ".join(part.name for part in rewards.parts),
        max_new_tokens=recipe.rollouts.max_new_tokens or 1,
        description="prompts and rewards of a recipe",
    )


def read_recipe_prompts(recipe: PPORecipe) -> tuple[list[Prompt], list[Prompt], dict[str, dict[str, Any]]]:
    """Prompts to train on, those held out (maybe none), and what data.json says of both, skipped rows included.

    Raises:
        BadPreferences, UnreadablePreferences, FileNotFoundError: see `load_prompts`.
    """
    if recipe.environment is not None:
        environment = recipe.environment.load()
        files = {"train": environment.train, "eval": environment.held_out}
        described = {name: _described(environment.name, prompts, []) for name, prompts in files.items() if prompts}
        return environment.train, environment.held_out, described
    source = recipe.prompts
    assert source is not None
    train = load_prompts(source.train, on_bad_rows=source.on_bad_rows)
    described = {"train": _described(train.source, train.prompts, train.problems)}
    if source.eval is None:
        return train.prompts, [], described
    held_out = load_prompts(source.eval, split="test", on_bad_rows=source.on_bad_rows)
    described["eval"] = _described(held_out.source, held_out.prompts, held_out.problems)
    return train.prompts, held_out.prompts, described


def read_usable_prompts(
    recipe: PPORecipe, tokenizer: Any
) -> tuple[list[Prompt], list[Prompt], dict[str, dict[str, Any]]]:
    """`read_recipe_prompts`, without the prompts that the chat template refuses where the recipe skips bad rows.

    Raises:
        TemplateRefusal, ValueError: a prompt that cannot be rendered, named; also where none would be left.
    """
    train, held_out, described = read_recipe_prompts(recipe)
    skips = recipe.prompts is not None and recipe.prompts.on_bad_rows == "skip"
    kept = []
    for name, prompts in (("train", train), ("eval", held_out)):
        usable, refused = _rendered(prompts, tokenizer, skips)
        if refused:
            part = described[name]
            described[name] = {
                **part,
                "prompts": len(usable),
                "skipped": part["skipped"] + len(refused),
                "problems": [*part["problems"], *refused],
                "refused_by_template": len(refused),
            }
        kept.append(usable)
    return kept[0], kept[1], described


def _rendered(prompts: list[Prompt], tokenizer: Any, skips: bool) -> tuple[list[Prompt], list[str]]:
    """Prompts that the chat template renders, and its words on those that it refuses."""
    usable, refused, first = [], [], None
    for prompt in prompts:
        try:
            encode_prompts(tokenizer, [prompt.rendered_from], [prompt.id])
        except TemplateRefusal as refusal:
            if not skips or isinstance(refusal.__cause__, TimeoutError):
                raise
            refused.append(str(refusal))
            first = first or refusal
        else:
            usable.append(prompt)
    if first is not None and not usable:
        raise first
    return usable, refused


def _described(source: str, prompts: list[Prompt], problems: Sequence[Any]) -> dict[str, Any]:
    return {
        "source": source, "prompts": len(prompts), "skipped": len(problems), "problems": [str(p) for p in problems],
    }  # fmt: skip


def recipe_rewards(recipe: PPORecipe, tokenizer: Any) -> Rewards:
    """The rewards of a PPO recipe; reward models are loaded. Errors as `rewards_of` and `load_function`."""
    if recipe.environment is not None:
        environment = recipe.environment.load()
        # Only environments made of rows lack a reward, and only those of a recipe's own prompts have one in parts.
        assert environment.reward is not None and not isinstance(environment.reward, PromptReward)
        return Rewards([Reward(environment.reward_name, environment.reward)])
    assert recipe.rewards is not None
    trust = recipe.model.trust_remote_code
    return Rewards(told_apart([part_of_recipe(entry, tokenizer, trust) for entry in recipe.rewards]))


def part_of_recipe(entry: RewardEntry, tokenizer: Any, trust_remote_code: bool) -> Reward:
    """One entry of a recipe's `rewards`. Errors as `rewards_of` and `load_function`."""
    source = load_function(entry.function) if entry.function else str(entry.model)
    return rewards_of(source, [entry.weight], tokenizer, trust_remote_code=trust_remote_code).parts[0]
