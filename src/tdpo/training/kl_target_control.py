"""The coefficient of a KL moves after every update, where it has a target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainerCallback

from ..scoring.kl_target import KLTargetController

logger = logging.getLogger(__name__)


class HeldByController(Protocol):
    """What has a coefficient that a controller moves: a loss of pairs, or the coefficient of PPO's KL."""

    @property
    def controller(self) -> KLTargetController | None: ...

    def end_update(self, total: Callable[[Tensor], Tensor]) -> None: ...

    def held_out_kl(self, metrics: Mapping[str, float]) -> float | None: ...


class KLTargetControl(TrainerCallback):
    """Tells what is held when an update ends, before it is logged and saved, and warns of a target that was missed.

    Args:
        held: with a controller.
        total: sums a vector over processes.
    """

    def __init__(self, held: HeldByController, total: Callable[[Tensor], Tensor]) -> None:
        self.held, self.total = held, total
        self.is_training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.held.controller is not None
        self.is_training = True
        self.held.controller.forget_update()  # an earlier call of train may have been interrupted within one

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.held.end_update(self.total)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        kl = self.held.held_out_kl(metrics or {})
        if self.is_training and kl is not None:
            assert self.held.controller is not None
            self.held.controller.see_held_out(kl)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.is_training = False
        assert self.held.controller is not None
        if state.is_world_process_zero and (sentence := self.held.controller.missed()):
            logger.warning(sentence)
