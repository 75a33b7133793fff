"""The loss scaling of float16, where an update may be without a gradient: one that had nothing to learn from."""

from __future__ import annotations

from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer


class ScalerOfSomeUpdates(GradScaler):
    """As torch's, which raises where no weight has a gradient. Here such a step changes neither weights nor scale."""

    def unscale_(self, optimizer: Optimizer) -> None:
        if _has_gradient(optimizer):
            super().unscale_(optimizer)

    def step(self, optimizer: Optimizer, *args: Any, **more: Any) -> float | None:
        """Without a gradient the optimizer's own step, which skips such weights, so that the step counts as taken."""
        if _has_gradient(optimizer):
            return super().step(optimizer, *args, **more)
        return optimizer.step(*args, **more)

    def update(self, new_scale: Any = None) -> None:
        if new_scale is not None or any(kept["found_inf_per_device"] for kept in self._per_optimizer_states.values()):
            super().update(new_scale)


def allow_updates_without_gradient(accelerator: Any) -> None:
    """Give an accelerator that scales losses by torch's scaler one that bears updates without a gradient; in place.

    Call it before optimizers are prepared. Others (of sharded weights, of other devices) stay as they are.
    """
    scaler = accelerator.scaler
    if type(scaler) is GradScaler:
        accelerator.scaler = ScalerOfSomeUpdates(scaler._device)
        accelerator.scaler.load_state_dict(scaler.state_dict())


def _has_gradient(optimizer: Optimizer) -> bool:
    return any(weight.grad is not None for group in optimizer.param_groups for weight in group["params"])
