"""What both models say about each response token: the statistics that every loss here is made of."""

from .statistics import frozen_head_token_stats, index_range, linear_token_stats, summarize_reference, token_stats
from .types import Extra, Head, Impl, ReferenceSummary, TokenStats

__all__ = [
    "Extra",
    "Head",
    "Impl",
    "ReferenceSummary",
    "TokenStats",
    "frozen_head_token_stats",
    "index_range",
    "linear_token_stats",
    "summarize_reference",
    "token_stats",
]
