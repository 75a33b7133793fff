"""Which outputs are compared: those to one prompt, one to each prompt, or only the good ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .texts import has_words
from .vectors import as_rows

if TYPE_CHECKING:
    from .vectors import Embeddings

    Group = Sequence[str] | Embeddings

# A function of a list of texts or of embeddings [K, D].
Metric = Callable[[Any], float | None]


def per_input(metric: Metric, groups: Iterable[Group]) -> list[float | None]:
    """`metric` over the outputs to each prompt: one value a prompt, None where it is undefined.

    A group is what was said to one prompt: texts, or their embeddings [K, D], which the metric gets as a float64
    tensor. Outputs without a word and rows of zeros are left out; fewer than two others have no diversity.
    """
    return [_value(metric, _outputs(group)) for group in groups]


def across_inputs(metric: Metric, groups: Iterable[Group]) -> float | None:
    """`metric` over one output to each prompt, the k-th; mean over k = 0 … K − 1 (Kirk et al. 2024, arXiv 2310.06452).

    Groups and what is left out as in `per_input`: where the k-th output to a prompt is empty, that set is one smaller.
    Outputs with the same k are compared, so the order of prompts does not matter, nor a reordering of the samples that
    is the same for all prompts; one that differs between prompts makes other sets, equally good. None where no set has
    two outputs.
    """
    outputs = [_outputs(group) for group in groups]
    longest = max((len(group) for group in outputs), default=0)
    return mean_of_defined(_value(metric, [g[k] for g in outputs if k < len(g)]) for k in range(longest))


def quality_gate(
    groups: Sequence[Sequence[Any]], rewards: Sequence[Sequence[float | None]], threshold: float
) -> list[list[Any]]:
    """Only the outputs whose reward is at or above `threshold`; one without a reward (None, NaN) is below it.

    Groups and rewards one a prompt, in the order of its outputs; works for texts and for rows of embeddings.
    """
    return [
        [output for output, reward in zip(group, scores, strict=True) if passes(reward, threshold)]
        for group, scores in zip(groups, rewards, strict=True)
    ]


def passes(reward: float | None, threshold: float) -> bool:
    return reward is not None and reward >= threshold


def mean_of_defined(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None, the same to the last bit in any order; None where all are None."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _outputs(group: Group) -> list[Any]:
    """The outputs one by one: texts, or rows [D] of float64."""
    if isinstance(group, Sequence) and (not group or isinstance(group[0], str)):
        return list(group)
    return list(as_rows(cast("Embeddings", group)).unbind())


def _value(metric: Metric, outputs: Sequence[Any]) -> float | None:
    kept = [output for output in outputs if _is_usable(output)]
    if len(kept) < 2:
        return None
    return metric(torch.stack(kept) if isinstance(kept[0], Tensor) else kept)


def _is_usable(output: Any) -> bool:
    return bool(output.any()) if isinstance(output, Tensor) else has_words(output)
