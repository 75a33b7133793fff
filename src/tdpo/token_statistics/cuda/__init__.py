"""The head's two walks as kernels for a GPU: matrix products of the vendor's library, and passes in Triton between.

The three operations take and give what the public functions do, from checked arguments. They import Triton when they
are called, which is on a GPU only: ask `kernels_apply` first.
"""

from __future__ import annotations

import functools
import logging

from torch import Tensor

from .. import tiled as plain
from ..types import Extra, Head, LearnedTokens, ReferenceSummary, TokenStats, mixture_of
from .choice import kernels_apply

__all__ = ["kernels_apply", "linear_statistics", "statistics", "summarize"]


def linear_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`linear_token_stats` of two heads. A Jensen–Shannon divergence has no kernel: the plain walk runs then."""
    arguments = policy_hidden, policy_head, reference_hidden, reference_head, targets, extras, learned
    if mixture_of(extras) is not None:
        _say_that_the_plain_walk_runs()
        return plain.linear_statistics(*arguments)
    from . import tiled

    return tiled.linear_statistics(*arguments)


def summarize(hidden: Tensor, head: Head, targets: Tensor) -> ReferenceSummary:
    """`summarize_reference`."""
    from . import frozen

    return frozen.summarize(hidden, head, targets)


def statistics(
    hidden: Tensor,
    head: Head,
    summary: ReferenceSummary,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`frozen_head_token_stats`."""
    from . import frozen

    return frozen.statistics(hidden, head, summary, targets, extras, learned)


@functools.cache
def _say_that_the_plain_walk_runs() -> None:
    logging.getLogger(__name__).info(
        "The Jensen–Shannon divergence has no kernel: the head is walked without one, several times slower."
    )
