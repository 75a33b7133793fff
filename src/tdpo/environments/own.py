"""An environment of the user's own: a file of prompts and a reward function, as a recipe names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdpo.environments.base import Environment, Prompt, copied, no_modes
from tdpo.environments.function_loading import load_function
from tdpo.environments.prompt_files import read_prompts
from tdpo.preferences import UnreadablePreferences

MODES = "modes"  # the column that lists a prompt's known modes


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
    """Read the prompts (`load_prompts`; they are named "file:row") and import the functions (`load_function`).

    `reward` takes prompts=, completions= and every column of the prompts by its name. `mode_of` takes one prompt, one
    completion and the columns by name, and returns the name of a mode, or None; the column `modes` of a prompt, a list
    of texts, says which there are. Raises what `load_prompts` and `load_function` raise, and UnreadablePreferences for
    a column `modes` of another form where `mode_of` is given.
    """
    train = read_prompts(prompts)
    kept_aside = [] if held_out is None else read_prompts(held_out, split="test")
    function = load_function(reward)
    modes = None if mode_of is None else load_function(mode_of)
    if modes is not None:
        for prompt in train + kept_aside:
            _check_columns(prompt)
    return Environment(
        name=Path(prompts).stem,
        train=train,
        held_out=kept_aside,
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
    found = prompt.columns.get(MODES)
    if "completion" in prompt.columns:
        raise UnreadablePreferences(
            f"{prompt.id}: the column 'completion' has the name of an argument that mode_of gets; rename or remove it"
        )
    if found is None:
        return
    sound = isinstance(found, list) and all(isinstance(mode, str) and mode for mode in found)
    if not sound or len(set(found)) < len(found):
        raise UnreadablePreferences(
            f"{prompt.id}: the column {MODES!r} is {found!r}; with mode_of it must be a list of different texts, the "
            "modes that a response to this prompt can be in"
        )


def _checked(function: Callable[..., Any], spec: str) -> Callable[[Prompt, str], str | None]:
    """`function` on a `Prompt`; raises ValueError where it fails or gives no known mode."""

    def mode_of(prompt: Prompt, completion: str) -> str | None:
        try:
            columns = {name: copied(value) for name, value in prompt.columns.items()}
            mode = function(copied(prompt.prompt), completion, **columns)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit too
            raise ValueError(
                f"{spec} raised {type(error).__name__}: {error} (prompt {prompt.id!r}, response {completion!r}); it "
                "gets a prompt, a completion and every column of the prompt by its name"
            ) from error
        known = _modes_of(prompt)
        if mode is None or (isinstance(mode, str) and (mode in known or not known)):
            return mode
        expected = f"one of {', '.join(map(repr, known))}, or None" if known else "the name of a mode, or None"
        raise ValueError(f"{spec} gave {mode!r} for prompt {prompt.id!r}, response {completion!r}; expected {expected}")

    return mode_of
