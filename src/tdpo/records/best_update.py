"""Which update the best model of a run is of, as trainer.json records it and people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def best_in_words(best: Mapping[str, Any]) -> str:
    """For instance: update 1 of 3 (best eval_rewards/accuracies, 0.75)."""
    value = best.get("value")
    number = f", {value:.4g}" if isinstance(value, int | float) else ""
    return f"update {best.get('step')} of {best.get('of')} (best {best.get('metric')}{number})"
