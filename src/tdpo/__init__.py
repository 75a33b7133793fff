"""tdpo: Token-level Direct Preference Optimization with an exact forward KL (arXiv 2404.11999).

Importing the package loads torch and the mathematics, nothing else. The trainers live in
`tdpo.training` and are also reachable as `tdpo.TDPOTrainer`, loaded on first use.
"""

from importlib import import_module
from typing import Any

from .losses import PreferenceLoss, dpo_loss, tdpo1_loss, tdpo2_loss
from .scores import PairScores, score_pairs
from .token_stats import (
    Head,
    ReferenceSummary,
    TokenStats,
    frozen_head_token_stats,
    linear_token_stats,
    summarize_reference,
    token_stats,
)

__version__ = "0.1.0"

_LAZY = {"TDPOConfig": "tdpo.training", "TDPOTrainer": "tdpo.training"}

__all__ = [
    "Head",
    "PairScores",
    "PreferenceLoss",
    "ReferenceSummary",
    "TokenStats",
    "dpo_loss",
    "frozen_head_token_stats",
    "linear_token_stats",
    "score_pairs",
    "summarize_reference",
    "tdpo1_loss",
    "tdpo2_loss",
    "token_stats",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tdpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
