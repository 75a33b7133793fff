"""Which code computes the statistics from hidden states: the one place where a head path is chosen.

A path computes what `linear_token_stats`, `summarize_reference` and `frozen_head_token_stats` promise, from arguments
that were checked. A new path (kernels of a device, for instance) is a module or a folder beside this file, a
`HeadPath` of its functions, and a line in `head_path`; the dense path is what its tests compare it with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from . import dense, frozen, tiled
from .types import Extra, Head, Impl, ReferenceSummary, TokenStats


@dataclass(frozen=True)
class HeadPath:
    """The three operations on hidden states; the last argument of `linear` and `frozen` names the extras."""

    linear: Callable[[Tensor, Head, Tensor, Head, Tensor, frozenset[Extra]], TokenStats]
    summarize: Callable[[Tensor, Head, Tensor], ReferenceSummary]
    frozen: Callable[[Tensor, Head, ReferenceSummary, Tensor, frozenset[Extra]], TokenStats]


TILED = HeadPath(tiled.linear_statistics, frozen.summarize, frozen.statistics)
DENSE = replace(TILED, linear=dense.linear_statistics)


def head_path(impl: Impl, device: torch.device) -> HeadPath:
    """The path that `impl` names, or with "auto" the fastest one on `device`.

    Raises:
        ValueError: `impl` is not the name of a path.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    return DENSE if impl == "dense" else TILED  # tiles are the fastest path of every device so far
