"""The coefficient of a KL beside the loss moves after every update, where it has a target."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from ..scoring.configured_loss import ConfiguredLoss

logger = logging.getLogger(__name__)


class KLTargetControl(TrainerCallback):
    """Tells the loss when an update ends, before it is logged and saved, and warns of a target that was missed.

    Args:
        loss: with a controller.
        total: sums a vector over processes.
    """

    def __init__(self, loss: ConfiguredLoss, total: Callable[[Tensor], Tensor]) -> None:
        self.loss, self.total = loss, total

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.loss.controller is not None
        self.loss.controller.forget_update()  # an earlier call of train may have been interrupted within one

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.loss.end_update(self.total)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.loss.controller is not None
        if state.is_world_process_zero and (sentence := self.loss.controller.missed()):
            logger.warning(sentence)
