"""Checks of an environment for `tdpo doctor`: its prompts can be read, and its functions can be called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import EnvironmentChoice
    from ..environments import Environment, Prompt

TRIAL = ("", "A short answer.")  # an empty response, which models do give, and a short one


def environment_checks(choice: EnvironmentChoice) -> Iterator[Check]:
    """Check the prompts, and try functions of the user's own on an empty and a short response.

    Raises what loading the environment raises, RewardError for a reward that cannot be called, and ValueError for an
    unknown mode.
    """
    environment = choice.load()
    prompts = f"{len(environment.train)} prompts to train on, {len(environment.held_out)} held out"
    yield Check("environment", "ok", f"{environment.name}: {prompts}, reward {environment.reward_name}")
    if not environment.held_out:
        yield Check("environment", "note", "no prompts are held out (environment.held_out): generations are not judged")
    if choice.name is None:
        trial = try_reward(environment, environment.train, environment.held_out)
        yield Check("environment reward", "ok", f"{choice.reward}: {trial}")


def try_reward(environment: Environment, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> str:
    """Describe the rewards of the trial responses to the first prompt of each split.

    Raises what the reward raises in training, sampling and evaluation, and ValueError for an unknown mode.
    """
    from ..environments import check_reward, score

    check_reward(environment, [*train, *held_out], environment.max_new_tokens)
    columns = ", ".join(dict.fromkeys(name for prompt in train for name in prompt.columns)) or "none"
    trials = []
    for prompt in [*train[:1], *(each for each in held_out[:1] if each not in train[:1])]:
        rewards = score(environment, [prompt] * len(TRIAL), TRIAL)
        modes = [environment.mode_of(prompt, text) for text in TRIAL] if environment.mode_of else None
        values = ", ".join(f"{text!r} {reward:g}" for text, reward in zip(TRIAL, rewards, strict=True))
        trials.append(f"{prompt.id} gives {values}" + (f", modes {modes}" if modes else ""))
    return f"{'; '.join(trials)}; columns for it: {columns}"
