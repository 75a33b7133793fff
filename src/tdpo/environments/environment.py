"""The environment, its prompts, and how its reward is called and checked.

Reward functions receive the texts of the responses as `completions=`, the name that TRL uses. The parameters of the
same name here follow it.
"""

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

# (prompts=..., completions=..., **columns) -> one number per response, as the reward functions of TRL's GRPO.
# Here `completions` are texts even where the prompts are lists of messages.
RewardFunction = Callable[..., Iterable[float]]


@dataclass(frozen=True)
class Prompt:
    """One prompt: plain text or messages. The reward receives `columns` as keyword arguments, one list per column."""

    id: str
    prompt: Text
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rendered_from(self) -> PromptInput:
        """The input of the chat template: the prompt with its columns `tools` and `chat_template_kwargs`, if any.

        Raises ValueError, naming the prompt, if a chat template cannot take these columns.
        """
        return prompt_input(self.prompt, self.columns, self.id)


def no_modes(prompt: Prompt) -> tuple[str, ...]:
    """Return no modes: the default for an environment whose prompts have no known modes."""
    return ()


def no_answers(prompt: Prompt) -> dict[str, tuple[str, ...]]:
    """Return no answers: the default for an environment whose modes have no known texts."""
    return {}


def own_cluster(prompt: Prompt) -> str:
    """Return the prompt's id: the default where every prompt is independent of all the others."""
    return prompt.id


def theme_of(prompt: Prompt) -> str:
    """Return the column `theme` of a prompt; its id if it has none."""
    return str(prompt.columns.get("theme", prompt.id))


@dataclass(frozen=True)
class Environment:
    """Prompts to train on, held-out prompts for evaluation, and the reward of a response (None if there is none).

    The good responses to a prompt may be of known kinds, its *modes*. Then `modes_of(prompt)` lists each of them once,
    and `mode_of(prompt, response)` returns the mode of a response, or None. So the modes that a model still reaches can
    be counted for each prompt. A response counts as good if its reward is at least `threshold`.

    Where modes have known texts, `answers_of(prompt)` maps each mode to the different texts that state it, whole
    responses in the form that the prompt asks for. Their probabilities under a model are computed and not sampled
    (`tdpo.evaluation.answer_log_probabilities`), and those of one mode are added.

    `cluster_of(prompt)` names the group of related prompts, such as those of one theme: prompts of one cluster are no
    independent evidence, so intervals draw whole clusters. By default every prompt is a cluster of its own.
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
    answers_of: Callable[[Prompt], Mapping[str, Sequence[str]]] = no_answers
    cluster_of: Callable[[Prompt], str] = own_cluster


class RewardError(ValueError):
    """The reward function failed, or returned something other than one finite number per response."""


class PromptReward(ABC):
    """A reward that receives `Prompt` objects, such as a sum of rewards. Its errors name the part that failed."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return one reward per response. Raises what the function `score` raises."""

    @abstractmethod
    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        """Check the reward before sampling. Raises what `check_reward` raises."""


def score(environment: Environment, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
    """Return the reward of every response; `prompts[i]` is the prompt of `completions[i]`.

    The function receives copies, so that it cannot change the prompts. ImportError and KeyboardInterrupt pass through
    unchanged.

    Raises:
        RewardError: the function raised (`sys.exit` included), or returned a wrong number of values or a value that is
            not a finite number. The message names the prompt and the value.
        ValueError: the lengths differ, or the environment has no reward.
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
        _number(environment, value, prompt, response)
        for value, prompt, response in zip(rewards, prompts, completions, strict=True)
    ]


def check_reward(environment: Environment, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Check before sampling that the reward accepts these prompts with responses of up to `max_new_tokens` tokens.

    A function is not called, as that may cost money or change its state; only its signature is examined.

    Raises:
        RewardError: a function cannot be called with prompts, completions and the columns of the prompts.
        ValueError: a reward model cannot read a prompt, or has no room for it and a response.
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
    # A copy for each response, as the responses to one prompt share it. What the function does to its arguments must
    # change neither the training prompts nor the arguments of another response.
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
    """Copy a prompt or the value of a column, for a function that may change its arguments."""
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # an open file, a client of a service: nothing that a prompt is made of
        return value


def _columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in names}


def _wrong_arguments(environment: Environment, prompts: Sequence[Prompt]) -> str:
    """Return what to change in a function that cannot take the arguments of a reward function; "" if it can."""
    assert environment.reward is not None and not isinstance(environment.reward, PromptReward)
    try:
        signature = inspect.signature(environment.reward)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return ""
    columns = _columns(prompts)
    try:
        signature.bind(prompts=[], completions=[], **columns)
    except TypeError:
        column_names = ", ".join(columns) or "none here"
        takes_more = any(part.kind is part.VAR_KEYWORD for part in signature.parameters.values())
        what = "it gets prompts=, completions=" if takes_more else "add **columns to its arguments: it gets prompts=,"
        what += "" if takes_more else " completions="
        return f"; {what} and every column of the prompts by its name ({column_names})"
    return ""


def _first_failure(environment: Environment, prompts: Sequence[Prompt], completions: Sequence[str]) -> str:
    """Name the response that made the function fail on a batch: the first one on which it also fails alone."""
    for prompt, response in zip(prompts, completions, strict=True):
        try:
            _call(environment, [prompt], [response])
        except KeyboardInterrupt:
            raise
        except BaseException:
            return f" (prompt {prompt.id!r}, response {_shortened(response)})"
    return f" (prompts {prompts[0].id!r} to {prompts[-1].id!r} together; each alone is fine)"


def _number(environment: Environment, value: Any, prompt: Prompt, response: str) -> float:
    # numpy's and torch's scalars are numbers once they are taken out of their arrays.
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(plain, Real) and _is_finite(plain):
        return float(plain)
    raise RewardError(
        f"reward {environment.reward_name!r} gave {_shortened(value)} for prompt {prompt.id!r}, response "
        f"{_shortened(response)}; it must be a finite number"
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
