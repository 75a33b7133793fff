"""Environments of the user's own: a file of prompts and a reward function, which a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdpo.environments.environment import Environment, Prompt, copied, no_modes
from tdpo.environments.function_loading import load_function
from tdpo.environments.prompt_files import read_prompts
from tdpo.preferences import UnreadablePreferences, read_for

MODES = "modes"  # the column that lists the known modes of a prompt


def own_environment(
    prompts: str | Path,
    held_out: str | Path | None,
    reward: str,
    *,
    max_new_tokens: int,
    reward_name: str | None = None,
    threshold: float | None = None,
    mode_of: str | None = None,
) -> Environment:
    """Return an environment made of files of prompts and functions, which are imported.

    The id of a prompt is "file:row". `reward` takes prompts=, completions= and every column of the prompts by its name.
    `mode_of` takes one prompt, one response and the columns by name, and returns the name of a mode, or None. The
    column `modes` of a prompt lists its modes as texts.

    Raises what `load_prompts` and `load_function` raise, and UnreadablePreferences if there is a `mode_of` and a column
    `modes` is not a list of different texts.
    """
    with read_for(None):
        train = read_prompts(prompts)
        held_out_prompts = [] if held_out is None else read_prompts(held_out, split="test")
    function = load_function(reward)
    modes = None if mode_of is None else load_function(mode_of)
    if modes is not None:
        for prompt in train + held_out_prompts:
            _check_columns(prompt)
    return Environment(
        name=Path(prompts).stem,
        train=train,
        held_out=held_out_prompts,
        reward=function,
        reward_name=reward_name or reward.rpartition(":")[2],
        max_new_tokens=max_new_tokens,
        description=f"prompts of {prompts}, reward {reward}",
        threshold=threshold,
        mode_of=None if modes is None else _checked(modes, str(mode_of)),
        modes_of=no_modes if modes is None else _modes_of,
    )


def _modes_of(prompt: Prompt) -> tuple[str, ...]:
    return tuple(prompt.columns.get(MODES) or ())


def _check_columns(prompt: Prompt) -> None:
    modes = prompt.columns.get(MODES)
    if "completion" in prompt.columns:
        raise UnreadablePreferences(
            f"{prompt.id}: the column 'completion' has the name of an argument that mode_of gets; rename or remove it"
        )
    if modes is None:
        return
    is_list_of_texts = isinstance(modes, list) and all(isinstance(mode, str) and mode for mode in modes)
    if not is_list_of_texts or len(set(modes)) < len(modes):
        raise UnreadablePreferences(
            f"{prompt.id}: the column {MODES!r} is {modes!r}; with mode_of it must be a list of different texts, the "
            "modes that a response to this prompt can be in"
        )


def _checked(function: Callable[..., Any], spec: str) -> Callable[[Prompt, str], str | None]:
    """Adapt `function` to a `Prompt`. The result raises ValueError if it fails or returns an unknown mode."""

    def mode_of(prompt: Prompt, response: str) -> str | None:
        try:
            columns = {name: copied(value) for name, value in prompt.columns.items()}
            mode = function(copied(prompt.prompt), response, **columns)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit too
            raise ValueError(
                f"{spec} raised {type(error).__name__}: {error} (prompt {prompt.id!r}, response {response!r}); it "
                "gets a prompt, a completion and every column of the prompt by its name"
            ) from error
        modes = _modes_of(prompt)
        if mode is None or (isinstance(mode, str) and (mode in modes or not modes)):
            return mode
        expected = f"one of {', '.join(map(repr, modes))}, or None" if modes else "the name of a mode, or None"
        raise ValueError(f"{spec} gave {mode!r} for prompt {prompt.id!r}, response {response!r}; expected {expected}")

    return mode_of
