"""What `tdpo doctor` says about an environment: that its prompts can be read and its functions be called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import EnvironmentChoice
    from ..environments import Environment, Prompt

TRIAL = ("", "A short answer.")  # what models do say: nothing, and something


def environment_checks(choice: EnvironmentChoice) -> Iterator[Check]:
    """Prompts, and for functions of the user's own what they say of an empty and a short response.

    Raises what loading the environment raises, RewardError for a reward that cannot be called, and ValueError for a
    mode that is none.
    """
    found = choice.load()
    prompts = f"{len(found.train)} prompts to train on, {len(found.held_out)} held out"
    yield Check("environment", "ok", f"{found.name}: {prompts}, reward {found.reward_name}")
    if not found.held_out:
        yield Check("environment", "note", "no prompts are held out (environment.held_out): generations are not judged")
    if choice.name is None:
        yield Check("environment reward", "ok", f"{choice.reward}: {tried(found, found.train, found.held_out)}")


def tried(environment: Environment, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> str:
    """The reward of the trial responses to the first prompt of each split, in words.

    Raises what training, sampling pairs and evaluating raise of this reward, and ValueError for a mode that is none.
    """
    from ..environments import check_reward, score

    check_reward(environment, [*train, *held_out], environment.max_new_tokens)
    columns = ", ".join(dict.fromkeys(name for prompt in train for name in prompt.columns)) or "none"
    said = []
    for prompt in [*train[:1], *held_out[:1]]:
        rewards = score(environment, [prompt] * len(TRIAL), TRIAL)
        modes = [environment.mode_of(prompt, text) for text in TRIAL] if environment.mode_of else None
        values = ", ".join(f"{text!r} {reward:g}" for text, reward in zip(TRIAL, rewards, strict=True))
        said.append(f"{prompt.id} gives {values}" + (f", modes {modes}" if modes else ""))
    return f"{'; '.join(said)}; columns for it: {columns}"
