"""tdpo: Token-level Direct Preference Optimization with an exact forward KL (arXiv 2404.11999).

Names are loaded on first use: the mathematics brings torch and nothing else, the trainers bring
transformers, and `tdpo --help`, which needs neither, answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses import PreferenceLoss, dpo_loss, f_dpo_loss, ipo_loss, sft_loss, simpo_loss, tdpo1_loss, tdpo2_loss
    from .scores import PairScores, score_pairs
    from .token_statistics import (
        Head,
        ReferenceSummary,
        TokenStats,
        frozen_head_token_stats,
        linear_token_stats,
        summarize_reference,
        token_stats,
    )
    from .training import (
        OnlineTDPOConfig,
        OnlineTDPOTrainer,
        PPOConfig,
        PPOTrainer,
        TDPOConfig,
        TDPOTrainer,
    )

__version__ = "0.1.0"

__all__ = [
    "Head",
    "OnlineTDPOConfig",
    "OnlineTDPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "PairScores",
    "PreferenceLoss",
    "ReferenceSummary",
    "TDPOConfig",
    "TDPOTrainer",
    "TokenStats",
    "dpo_loss",
    "f_dpo_loss",
    "frozen_head_token_stats",
    "ipo_loss",
    "linear_token_stats",
    "score_pairs",
    "sft_loss",
    "simpo_loss",
    "summarize_reference",
    "tdpo1_loss",
    "tdpo2_loss",
    "token_stats",
]

_LAZY = {
    **dict.fromkeys(
        ["PreferenceLoss", "dpo_loss", "f_dpo_loss", "ipo_loss", "sft_loss", "simpo_loss", "tdpo1_loss", "tdpo2_loss"],
        "tdpo.losses",
    ),
    **dict.fromkeys(["PairScores", "score_pairs"], "tdpo.scores"),
    **dict.fromkeys(
        [
            "Head",
            "ReferenceSummary",
            "TokenStats",
            "frozen_head_token_stats",
            "linear_token_stats",
            "summarize_reference",
            "token_stats",
        ],
        "tdpo.token_statistics",
    ),
    **dict.fromkeys(
        ["OnlineTDPOConfig", "OnlineTDPOTrainer", "PPOConfig", "PPOTrainer", "TDPOConfig", "TDPOTrainer"],
        "tdpo.training",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tdpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
