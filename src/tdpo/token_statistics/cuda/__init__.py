"""The head's two walks as kernels for a GPU: matrix products of the vendor's library, and passes in Triton between.

The three operations take and give what the public functions do, from checked arguments. They import Triton when they
are called, which is on a GPU only: ask `kernels_apply` first.
"""

from __future__ import annotations

from torch import Tensor

from ..types import Extra, Head, LearnedTokens, ReferenceSummary, TokenStats
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
    """`linear_token_stats`."""
    from . import tiled

    return tiled.linear_statistics(
        policy_hidden, policy_head, reference_hidden, reference_head, targets, extras, learned
    )


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
