"""Which responses are compared: all to one prompt, one to each prompt, or only the good ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .vectors import as_rows
from .words import has_words

if TYPE_CHECKING:
    from .vectors import Embeddings

    Group = Sequence[str] | Embeddings

# A function of a list of texts or of embeddings `[K, D]`; None where it is undefined.
Metric = Callable[[Any], float | None]


def per_input(metric: Metric, groups: Iterable[Group]) -> list[float | None]:
    """`metric` of the responses to each prompt: one value per prompt, None where it is undefined.

    A group is the responses to one prompt: texts, or their embeddings `[K, D]`, which the metric gets as a float64
    tensor. Texts without a word and rows of zeros are left out. If fewer than two responses remain, there is no value.
    """
    return [_value(metric, _responses(group)) for group in groups]


def across_inputs(metric: Metric, groups: Iterable[Group]) -> float | None:
    """The mean of `metric` over K sets, the k-th of which has the k-th response to each prompt (Kirk et al. 2024, arXiv
    2310.06452); None where no set has two responses.

    Groups, and what is left out, are as in `per_input`: if the k-th response to a prompt is empty, that set is one
    smaller. The order of prompts does not matter, nor a reordering of the responses that is the same for all prompts.
    A reordering that differs between prompts makes other sets, which are equally good.
    """
    responses = [_responses(group) for group in groups]
    longest = max((len(group) for group in responses), default=0)
    return mean_of_defined(_value(metric, [g[k] for g in responses if k < len(g)]) for k in range(longest))


def quality_gate(
    groups: Sequence[Sequence[Any]], rewards: Sequence[Sequence[float | None]], threshold: float
) -> list[list[Any]]:
    """The responses whose reward is at least `threshold`; a missing reward (None, NaN) is below it.

    `groups` and `rewards` have one entry per prompt, with the responses in the same order. A response may be a text or
    a row of embeddings.
    """
    return [
        [response for response, reward in zip(group, scores, strict=True) if passes(reward, threshold)]
        for group, scores in zip(groups, rewards, strict=True)
    ]


def passes(reward: float | None, threshold: float) -> bool:
    """Whether the reward is a number of at least `threshold`."""
    return reward is not None and reward >= threshold


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None, the same to the last bit in any order; None where all are None."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _responses(group: Group) -> list[Any]:
    """The responses one by one: texts, or float64 rows `[D]`."""
    if isinstance(group, Sequence) and (not group or isinstance(group[0], str)):
        return list(group)
    return list(as_rows(cast("Embeddings", group)).unbind())


def _value(metric: Metric, responses: Sequence[Any]) -> float | None:
    usable = [response for response in responses if _is_usable(response)]
    if len(usable) < 2:
        return None
    return metric(torch.stack(usable) if isinstance(usable[0], Tensor) else usable)


def _is_usable(response: Any) -> bool:
    return bool(response.any()) if isinstance(response, Tensor) else has_words(response)
