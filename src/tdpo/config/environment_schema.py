"""The section `environment` of both kinds of recipe: a built-in environment, or one of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationInfo, field_validator, model_validator

from ._sections import PositiveInt, Section, Text, key_problems

if TYPE_CHECKING:
    from ..environments import Environment

LIMITS = ("max_prompts", "max_held_out")  # keys that fit both kinds of environment


class EnvironmentChoice(Section):
    """Prompts and a reward: what `tdpo pairs` samples from, `tdpo ppo` learns from, and `tdpo evaluate` scores
    generations with. Either a built-in one, by its `name`, or one of your own: `prompts`, `reward` and
    `max_new_tokens`, and what else fits."""

    name: Text | None = None
    """A built-in environment: `sentiment`, `keywords`, `plain_language`, `brevity`, `categories` or
    `graded_categories`."""
    prompts: Text | None = None
    """Prompts of your own to train on: a file (JSONL, JSON, Parquet, CSV), saved dataset folder, or hub name with a
    column `prompt`: plain text, or messages. Other columns reach the functions."""
    held_out: Text | None = None
    """Prompts of your own that are kept aside for evaluation, in the same formats; null holds none."""
    reward: Text | None = None
    """`file.py:name` or `package.module:name` of a function that takes prompts=, completions= and every column of
    the prompts by its name, and returns a number for each completion."""
    reward_name: Text | None = None
    """What the reward is called in reports; null is the function's name."""
    max_new_tokens: PositiveInt | None = None
    """Longest response to prompts of your own, in tokens."""
    threshold: float | None = None
    """Reward from which on a response counts as good; null says nothing of that."""
    mode_of: Text | None = None
    """`file.py:name` of a function that takes a prompt, a completion and the prompt's columns by name, and returns
    which kind of answer it is, as text, or None; a column `modes` lists the kinds that there are."""
    max_prompts: PositiveInt | None = None
    """Take only the first so many prompts to train on, and of those held out; null takes all."""
    max_held_out: PositiveInt | None = None
    """Take only the first so many of the prompts that are held out (and of those at most `max_prompts`); null sets no
    further limit."""

    @field_validator("reward_name")
    @classmethod
    def _named_as_its_function(cls, name: str | None, info: ValidationInfo) -> str | None:
        reward = info.data.get("reward")
        return reward.rpartition(":")[2] if name is None and reward is not None else name

    @model_validator(mode="after")
    def _one_way(self) -> EnvironmentChoice:
        problems = _environment_problems(self)
        if problems:
            raise key_problems(*((f"environment{key and '.'}{key}", reason) for key, reason in problems))
        return self

    @property
    def label(self) -> str:
        """The environment's name, or that of the file of its prompts."""
        return self.name or Path(str(self.prompts)).stem

    @property
    def holds_out(self) -> bool:
        """Whether the environment has prompts that are not trained on."""
        return self.name is not None or self.held_out is not None

    def load(self) -> Environment:
        """The environment itself. Raises as `load_environment` does for a name, and as `own_environment` for files."""
        environment = self._load_whole()
        first = slice(self.max_prompts)
        held_out = environment.held_out[first][: self.max_held_out]
        return replace(environment, train=environment.train[first], held_out=held_out)

    def _load_whole(self) -> Environment:
        from ..environments import load_environment, own_environment

        if self.name is not None:
            return load_environment(self.name)
        assert self.prompts is not None and self.reward is not None and self.max_new_tokens is not None
        return own_environment(
            self.prompts,
            self.held_out,
            self.reward,
            max_new_tokens=self.max_new_tokens,
            reward_name=self.reward_name,
            threshold=self.threshold,
            mode_of=self.mode_of,
        )


def _environment_problems(choice: EnvironmentChoice) -> list[tuple[str, str]]:
    """What is wrong with the choice of an environment: a built-in one, or prompts with a reward and a length."""
    keys = [key for key, value in choice if value is not None and key not in LIMITS]
    if choice.name is not None:
        # A name for the reward is resolved from the function, and then not what somebody wrote.
        extra = [key for key in keys if key != "name" and not (key == "reward_name" and choice.reward is not None)]
        reason = f"has no effect beside environment.name {choice.name}, which has its own; remove one of the two"
        return [(key, reason) for key in extra]
    if not keys:
        reason = "names none; set environment.name (sentiment, for instance), or prompts, reward and max_new_tokens"
        return [("", reason)]
    missing = {
        "prompts": "is missing: a reward judges responses to prompts; name their file, or choose environment.name",
        "reward": "is missing: prompts come without a reward; name a function as file.py:name",
        "max_new_tokens": "is missing: prompts of your own name no length; set the longest response, in tokens",
    }
    problems = [(key, reason) for key, reason in missing.items() if key not in keys]
    if choice.max_held_out is not None and choice.held_out is None:
        problems.append(("max_held_out", "has no effect: environment.held_out names no prompts that are held out"))
    return problems
