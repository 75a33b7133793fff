"""Rewards of responses: weighted sums of reward functions and reward models, and the checks of what they return.

The parameter `completions` holds the texts of the responses. The name is TRL's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..environments import (
    Environment,
    Prompt,
    PromptReward,
    RewardError,
    RewardFunction,
    check_prompt_rows,
    check_reward,
    score,
)
from ..environments.prompt_files import refuse_reserved_columns
from ..preferences.readers import read_dataset
from ..preferences.text_files import Record
from .models import RewardModel

FLAT_ITERATIONS = 3


@dataclass(frozen=True)
class Reward:
    """One reward with its weight. `function` has the signature of TRL's GRPO: (prompts, completions, **columns)."""

    name: str
    function: RewardFunction
    weight: float = 1.0

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the unweighted reward of every response. Raises RewardError, which names the prompt and the value."""
        return score(self.environment, prompts, completions)

    @property
    def environment(self) -> Environment:
        """The reward as an environment without prompts, because rewards are called and checked through environments."""
        return Environment(self.name, [], [], self.function, self.name, 1, "")


@dataclass(frozen=True)
class Rewards(PromptReward):
    """The weighted sum of several rewards."""

    parts: list[Reward]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[list[float], dict[str, float]]:
        """Return the reward of every response, and the mean of each part by the name of its log if there are several.

        Raises:
            RewardError: a function raised, or returned something other than one finite number per response.
        """
        columns = [part(prompts, completions) for part in self.parts]
        totals = [sum(p.weight * v for p, v in zip(self.parts, row, strict=True)) for row in zip(*columns, strict=True)]
        several = zip(self.parts, columns, strict=True) if len(self.parts) > 1 else ()
        return totals, {f"rewards/{part.name}": sum(column) / max(len(column), 1) for part, column in several}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the reward of every response. Raises RewardError."""
        return self(prompts, completions)[0]

    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        """Check every part before sampling. Raises what `check_reward` raises."""
        for part in self.parts:
            check_reward(part.environment, prompts, max_new_tokens)


@dataclass
class ConstancyWatch:
    """Distinguishes a constant reward function from a single iteration in which all responses got the same reward.

    A hard task gives no reward at first, and a learned task gives the same reward to all responses. Such an iteration
    is wasted, and a message says so. A reward that did not vary in any of the first `FLAT_ITERATIONS` iterations
    teaches nothing, and is an error.
    """

    flat: int = 0
    varied: bool = False

    def see(self, rewards: Sequence[float], prompts: Sequence[Prompt], completions: Sequence[str]) -> str | None:
        """Record the rewards of an iteration, and return a message if all are the same though the responses differ.

        Raises:
            RewardError: that was so in each of the first `FLAT_ITERATIONS` iterations of a run.
        """
        self.varied = self.varied or len(set(rewards)) > 1
        if len(set(rewards)) > 1 or len(set(completions)) == 1:
            return None
        self.flat += 1
        what = (
            f"the reward gave {rewards[0]!r} to all {len(rewards)} completions of an iteration, different ones among "
            f"them (the first answers prompt {prompts[0].id!r})"
        )
        if self.varied or self.flat < FLAT_ITERATIONS:
            return f"{what}: it teaches nothing but the KL. More completions an iteration make that rarer."
        raise RewardError(
            f"{what}, and so in each of the first {self.flat}: a constant reward teaches nothing. Is it the right "
            "function for these prompts, or is every completion at its limit already?"
        )


def rewards_of(
    reward_funcs: Any,
    weights: Sequence[float] | None,
    tokenizer: Any,
    *,
    device: Any = "cpu",
    trust_remote_code: bool = False,
) -> Rewards:
    """Make rewards of what a user passes: a function, the name of a sequence-classification model, or a list of these.

    Raises:
        ValueError: there is no reward, the number of weights is wrong, or a reward model does not fit (`RewardModel`).
    """
    if isinstance(reward_funcs, Rewards):
        return reward_funcs
    sources = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not sources or any(source is None for source in sources):
        raise ValueError("reward_funcs is missing: pass a function (prompts, completions, **columns) -> list[float]")
    if weights is not None and len(weights) != len(sources):
        raise ValueError(f"reward_weights has {len(weights)} numbers for {len(sources)} reward functions")
    parts = []
    for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
        if isinstance(source, str | Path):
            model = RewardModel(source, tokenizer, device=device, trust_remote_code=trust_remote_code)
            parts.append(Reward(Path(source).name, model, weight))
        elif callable(source):
            parts.append(Reward(getattr(source, "__name__", type(source).__name__), source, weight))
        else:
            raise ValueError(f"a reward is a function or the name of a model, got {type(source).__name__}")
    return Rewards(with_distinct_names(parts))


def with_distinct_names(parts: list[Reward]) -> list[Reward]:
    """Return the parts, with numbers added to all names if two are equal."""
    if len({part.name for part in parts}) == len(parts):
        return parts
    return [Reward(f"{part.name} ({i})", part.function, part.weight) for i, part in enumerate(parts, start=1)]


def prompts_of(dataset: Any, name: str) -> list[Prompt]:
    """Make prompts of what a user passes: `Prompt`s, texts, lists of messages, or rows with `prompt` and other columns.

    Rows are numbered from 0 and get the checks of prompt files.

    Raises:
        ValueError: there are no rows, or a row has no prompt; the message gives its number.
        UnreadablePreferences, BadPreferences: see `load_prompts`.
    """
    rows = [record.values for record in read_dataset(dataset, name) if isinstance(record, Record)]
    if not rows:
        raise ValueError(f"{name} has no prompts")
    refuse_reserved_columns([row.columns for row in rows if isinstance(row, Prompt)], name)
    numbered = [(i, _row(row, f"{name}:{i}")) for i, row in enumerate(rows) if not isinstance(row, Prompt)]
    checked = iter(check_prompt_rows(numbered, name))
    return [row if isinstance(row, Prompt) else next(checked) for row in rows]


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Return a SHA-256 digest of the prompts and their columns, which depends on the order of prompts."""
    content = [[prompt.prompt, dict(prompt.columns)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _row(row: Any, place: str) -> Mapping[str, Any]:
    values = row if isinstance(row, Mapping) else {"prompt": row}
    text = values.get("prompt")
    if not text or not isinstance(text, str | list):
        raise ValueError(f"{place} must hold a `prompt`, a text or a list of messages that is not empty, got {text!r}")
    return values
