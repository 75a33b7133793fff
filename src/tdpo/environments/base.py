"""What an environment is, and how its reward is called and checked."""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from tdpo.chat_templates import prompt_input

if TYPE_CHECKING:
    from tdpo.chat_templates import PromptInput
    from tdpo.preferences import Text

# (prompts=..., completions=..., **columns) -> one number a completion, as the reward functions of TRL's GRPO;
# completions are the texts of the responses, also where the prompts are lists of messages.
RewardFunction = Callable[..., Iterable[float]]


@dataclass(frozen=True)
class Prompt:
    """One prompt, plain text or messages. The reward receives `columns` as keyword arguments, one list a column."""

    id: str
    prompt: Text
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rendered_from(self) -> PromptInput:
        """What a model is given: the prompt with its columns `tools` and `chat_template_kwargs`, where it has them.

        Raises ValueError, naming the prompt, where a chat template cannot take these.
        """
        return prompt_input(self.prompt, self.columns, self.id)


def no_modes(prompt: Prompt) -> tuple[str, ...]:
    """The known modes of a prompt where none are known."""
    return ()


@dataclass(frozen=True)
class Environment:
    """Prompts to learn from, prompts kept aside for judging, and the reward of a response (None: there is none).

    Where good answers to a prompt are of known kinds, its *modes*, `modes_of(prompt)` lists them (all of them, each
    once) and `mode_of(prompt, response)` says in which one a response is, or None; then the modes that a model
    still finds can be counted, prompt by prompt. `threshold` is the reward from which on a response counts as good.
    """

    name: str
    train: list[Prompt]
    held_out: list[Prompt]
    reward: RewardFunction | PromptReward | None
    reward_name: str
    max_new_tokens: int
    description: str
    threshold: float | None = None
    mode_of: Callable[[Prompt, str], str | None] | None = None
    modes_of: Callable[[Prompt], tuple[str, ...]] = no_modes


class RewardError(ValueError):
    """The reward function failed or gave something that is not one finite number a completion."""


class PromptReward(ABC):
    """A reward that knows its prompts by name, as one that is made of several does: it names what fails itself."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """As `score`."""

    @abstractmethod
    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        """As `check_reward`."""


def score(environment: Environment, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
    """The reward of every completion; `prompts[i]` is the prompt of `completions[i]`.

    The function gets copies: what it does to its arguments changes no prompt. Raises RewardError, naming prompt and
    value, if the function raises (sys.exit included), returns another number of values, or a value that is no finite
    number. A package that the function misses (ImportError) is reported as it is, and the user's interrupt is kept.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"one prompt for every completion is needed, not {len(prompts)} for {len(completions)}")
    if environment.reward is None:
        raise ValueError(f"environment {environment.name!r} has no reward to score responses with")
    if not prompts:
        return []
    if isinstance(environment.reward, PromptReward):
        return environment.reward.score(prompts, completions)
    try:
        rewards = _call(environment, prompts, completions)
    except (ImportError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit too: it would end the command as if all was well
        raise RewardError(
            f"reward {environment.reward_name!r} raised {type(error).__name__}: {error}"
            f"{_first_failure(environment, prompts, completions)}{_wrong_arguments(environment, prompts)}"
        ) from error
    if len(rewards) != len(prompts):
        raise RewardError(
            f"reward {environment.reward_name!r} returned {len(rewards)} values for {len(prompts)} completions "
            f"(prompts {prompts[0].id!r} to {prompts[-1].id!r}); it must return one number for each"
        )
    return [
        _number(environment, value, prompt, completion)
        for value, prompt, completion in zip(rewards, prompts, completions, strict=True)
    ]


def check_reward(environment: Environment, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Whether the reward can take these prompts with responses of that length, asked before anything is sampled.

    A function is not called, as that may cost money or change its state: only its arguments are looked at.

    Raises:
        RewardError: a function that cannot be called with prompts, completions and the columns of the prompts.
        ValueError: a reward model that cannot read a prompt, or has no room for it.
    """
    reward = environment.reward
    if reward is None or not prompts:
        return
    if isinstance(reward, PromptReward):
        reward.check(prompts, max_new_tokens)
        return
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
        raise RewardError(f"reward {environment.reward_name!r} is async; {PLAIN_FUNCTION}")
    if (reason := _wrong_arguments(environment, prompts)) != "":
        raise RewardError(f"reward {environment.reward_name!r} cannot be called{reason}")
    if (check := getattr(reward, "check", None)) is not None:
        check(prompts, max_new_tokens)


PLAIN_FUNCTION = "make it a plain function (asyncio.run can call the other one inside)"


def _call(environment: Environment, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Any]:
    # A copy for each completion, as several of one prompt share it: what the function does to its arguments must
    # reach neither the prompts that are trained on nor the argument of another completion.
    columns = {name: [copied(value) for value in values] for name, values in _columns(prompts).items()}
    texts = [copied(prompt.prompt) for prompt in prompts]
    assert environment.reward is not None and not isinstance(environment.reward, PromptReward)
    returned: Any = environment.reward(prompts=texts, completions=list(completions), **columns)
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that it was never awaited
        raise TypeError(f"it is async; {PLAIN_FUNCTION}")
    if isinstance(returned, str | bytes | Mapping | Set) or not isinstance(returned, Iterable):
        raise TypeError(f"it returned {_shortened(returned)} where one number for each completion is expected")
    return list(returned)


def copied(value: Any) -> Any:
    """A copy of a prompt or of a value of a column, for a function that may change its arguments."""
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a client of a service: no prompt is made of these
        return value


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _wrong_arguments(environment: Environment, prompts: Sequence[Prompt]) -> str:
    """What to do about a function that cannot take what every reward function gets; "" where it can."""
    assert environment.reward is not None and not isinstance(environment.reward, PromptReward)
    try:
        taken = inspect.signature(environment.reward)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return ""
    columns = _columns(prompts)
    try:
        taken.bind(prompts=[], completions=[], **columns)
    except TypeError:
        named = ", ".join(columns) or "none here"
        takes_more = any(part.kind is part.VAR_KEYWORD for part in taken.parameters.values())
        what = "it gets prompts=, completions=" if takes_more else "add **columns to its arguments: it gets prompts=,"
        what += "" if takes_more else " completions="
        return f"; {what} and every column of the prompts by its name ({named})"
    return ""


def _first_failure(environment: Environment, prompts: Sequence[Prompt], completions: Sequence[str]) -> str:
    """Which completion it was: the whole batch failed, so each is tried alone."""
    for prompt, completion in zip(prompts, completions, strict=True):
        try:
            _call(environment, [prompt], [completion])
        except KeyboardInterrupt:
            raise
        except BaseException:
            return f" (prompt {prompt.id!r}, response {_shortened(completion)})"
    return f" (prompts {prompts[0].id!r} to {prompts[-1].id!r} together; each alone is fine)"


def _number(environment: Environment, value: Any, prompt: Prompt, completion: str) -> float:
    # numpy's and torch's scalars are numbers once they are taken out of their arrays.
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(plain, Real) and _is_finite(plain):
        return float(plain)
    raise RewardError(
        f"reward {environment.reward_name!r} gave {_shortened(value)} for prompt {prompt.id!r}, response "
        f"{_shortened(completion)}; it must be a finite number"
    )


def _is_finite(number: Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def _shortened(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(text) if isinstance(value, str) else text
