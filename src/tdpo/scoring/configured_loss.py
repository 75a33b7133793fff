"""The loss that a recipe or a configuration names, as one function of pair scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..losses import PreferenceLoss, dpo_loss, ipo_loss, sft_loss, tdpo1_loss, tdpo2_loss
from ..scores import PairScores


def configured_loss(
    name: str, beta: float | None, alpha: float | None, label_smoothing: float
) -> Callable[[PairScores], PreferenceLoss]:
    """`name` is tdpo2, tdpo1, dpo, ipo or sft; only tdpo2 has `alpha`, ipo has `beta` alone, and sft has nothing."""
    if name == "sft":
        return sft_loss
    assert beta is not None
    if name == "ipo":
        return partial(ipo_loss, beta=beta)
    if name == "tdpo2":
        assert alpha is not None
        return partial(tdpo2_loss, beta=beta, alpha=alpha, label_smoothing=label_smoothing)
    return partial({"dpo": dpo_loss, "tdpo1": tdpo1_loss}[name], beta=beta, label_smoothing=label_smoothing)


def beta_of(loss: Callable[[PairScores], PreferenceLoss]) -> float:
    """What a nat of a log-ratio counts in the margin of a loss that `configured_loss` made: its β, 1 for SFT."""
    return float(getattr(loss, "keywords", {}).get("beta", 1.0))
