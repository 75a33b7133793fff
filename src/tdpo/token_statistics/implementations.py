"""Which code computes the statistics from hidden states: the one place where this is chosen.

An implementation computes what `linear_token_stats`, `summarize_reference` and `frozen_head_token_stats` promise, from
arguments that were checked. A new one (kernels of a device, for instance) is a module or a folder beside this file, an
`Implementation` of its functions, and a line in `implementation_for`. Its tests compare it with the dense one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from . import cuda, dense, frozen, tiled
from .cuda.choice import operand_dtype
from .cuda.self_check import kernels_agree
from .types import Extra, Head, Impl, LearnedTokens, ReferenceSummary, TokenStats


@dataclass(frozen=True)
class Implementation:
    """The three operations on hidden states, with the arguments of the public functions.

    The last arguments of `linear` and `frozen` are the set of extras and the learned tokens: gradients of KLs elsewhere
    are 0.
    """

    linear: Callable[[Tensor, Head, Tensor, Head, Tensor, frozenset[Extra], LearnedTokens], TokenStats]
    summarize: Callable[[Tensor, Head, Tensor], ReferenceSummary]
    frozen: Callable[[Tensor, Head, ReferenceSummary, Tensor, frozenset[Extra], LearnedTokens], TokenStats]


TILED = Implementation(tiled.linear_statistics, frozen.summarize, frozen.statistics)
DENSE = replace(TILED, linear=dense.linear_statistics)
KERNELS = Implementation(cuda.linear_statistics, cuda.summarize, cuda.statistics)


def implementation_for(impl: Impl, *tensors: Tensor | None) -> Implementation:
    """The implementation with the name `impl` for these hidden states and heads; "auto" is "tiled".

    Tiles are walked by the kernels where those take the tensors and agree with the plain walk on their device.

    Raises:
        ValueError: `impl` is no such name.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    if impl == "dense":
        return DENSE
    return KERNELS if cuda.kernels_apply(*tensors) and _agree_on(*tensors) else TILED


def _agree_on(*tensors: Tensor | None) -> bool:
    """Whether the kernels agree with the plain walk on the device of these tensors, in the dtypes of their products."""
    matrices = [tensor for tensor in tensors if tensor is not None and tensor.dim() == 2]  # and no biases
    models = len(matrices) // 2  # their hidden states come first, then their heads
    dtypes = {operand_dtype(*pair) for pair in zip(matrices[:models], matrices[models:], strict=True)}
    return all(kernels_agree(matrices[0].device, dtype) for dtype in dtypes)
