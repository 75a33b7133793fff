"""What a completion is worth: reward functions and reward models, weighted, called once and checked every time."""

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
    """One source of reward. `function` has the signature of TRL's GRPO: (prompts, completions, **columns) → floats."""

    name: str
    function: RewardFunction
    weight: float = 1.0

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Unweighted, one number a completion. Raises RewardError naming prompt and value."""
        return score(self.environment, prompts, completions)

    @property
    def environment(self) -> Environment:
        """The reward as an environment without prompts, which is what rewards are called and checked through."""
        return Environment(self.name, [], [], self.function, self.name, 1, "")


@dataclass(frozen=True)
class Rewards(PromptReward):
    """The weighted sum of several rewards."""

    parts: list[Reward]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[list[float], dict[str, float]]:
        """The reward of every completion, and the mean of each part where there are several.

        Raises:
            RewardError: a function raised, or gave something that is not one finite number a completion.
        """
        columns = [part(prompts, completions) for part in self.parts]
        totals = [sum(p.weight * v for p, v in zip(self.parts, row, strict=True)) for row in zip(*columns, strict=True)]
        several = zip(self.parts, columns, strict=True) if len(self.parts) > 1 else ()
        return totals, {f"rewards/{part.name}": sum(column) / max(len(column), 1) for part, column in several}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        return self(prompts, completions)[0]

    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        for part in self.parts:
            check_reward(part.environment, prompts, max_new_tokens)


@dataclass
class ConstancyWatch:
    """Tells a reward function that says the same of everything from an iteration without a difference.

    A hard task gives no reward at first, a learned one the same to all: that costs an iteration and is said. A reward
    that has never differed in the first `FLAT_ITERATIONS` teaches nothing and is an error.
    """

    flat: int = 0
    varied: bool = False

    def see(self, rewards: Sequence[float], prompts: Sequence[Prompt], completions: Sequence[str]) -> str | None:
        """What to say of this iteration's rewards, if anything.

        Raises:
            RewardError: different completions got one and the same reward, in the first `FLAT_ITERATIONS` of a run.
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
    given: Any,
    weights: Sequence[float] | None,
    tokenizer: Any,
    *,
    device: Any = "cpu",
    trust_remote_code: bool = False,
) -> Rewards:
    """Rewards from what a user passes: a function, the name of a sequence-classification model, or a list of these.

    Raises:
        ValueError: nothing was given, the weights do not match, or a reward model that does not fit (`RewardModel`).
    """
    if isinstance(given, Rewards):
        return given
    sources = list(given) if isinstance(given, list | tuple) else [given]
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
    return Rewards(told_apart(parts))


def told_apart(parts: list[Reward]) -> list[Reward]:
    """The parts, numbered where two have one name."""
    if len({part.name for part in parts}) == len(parts):
        return parts
    return [Reward(f"{part.name} ({i})", part.function, part.weight) for i, part in enumerate(parts, start=1)]


def prompts_of(dataset: Any, name: str) -> list[Prompt]:
    """Prompts from what a user passes: `Prompt`s, texts, lists of messages, or rows with `prompt` and other columns.

    Rows are numbered from 0, and checked as those of files are.

    Raises:
        ValueError: no rows, or a row without a prompt, named by its number; UnreadablePreferences and BadPreferences
            as `load_prompts`.
    """
    rows = [record.values for record in read_dataset(dataset, name) if isinstance(record, Record)]
    if not rows:
        raise ValueError(f"{name} has no prompts")
    refuse_reserved_columns([row.columns for row in rows if isinstance(row, Prompt)], name)
    numbered = [(i, _row(row, f"{name}:{i}")) for i, row in enumerate(rows) if not isinstance(row, Prompt)]
    checked = iter(check_prompt_rows(numbered, name))
    return [row if isinstance(row, Prompt) else next(checked) for row in rows]


def digest_of(prompts: Sequence[Prompt]) -> str:
    """A hash of the prompts in their order, with the columns that reach the reward functions."""
    content = [[prompt.prompt, dict(prompt.columns)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _row(row: Any, place: str) -> Mapping[str, Any]:
    values = row if isinstance(row, Mapping) else {"prompt": row}
    text = values.get("prompt")
    if not text or not isinstance(text, str | list):
        raise ValueError(f"{place} must hold a `prompt`, a text or a list of messages that is not empty, got {text!r}")
    return values
