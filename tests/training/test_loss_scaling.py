"""The scaler of float16 bears updates that had nothing to learn from; on a CPU, whose scaler is the same code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.amp import GradScaler

from accelerate import Accelerator
from tdpo.training.loss_scaling import allow_updates_without_gradient

SCALE = 2.0**10


def scaler_of(**settings: float) -> GradScaler:
    accelerator = SimpleNamespace(scaler=GradScaler("cpu", init_scale=SCALE, **settings))
    allow_updates_without_gradient(accelerator)
    return accelerator.scaler


def updates(scaler: GradScaler | None, losses: list[float | None]) -> tuple[list[Tensor], AcceleratedOptimizer]:
    """The weight after each update by AdamW with momentum and decay; None is an update without a loss."""
    Accelerator(cpu=True)
    weight = nn.Parameter(torch.ones(3))
    optimizer = AcceleratedOptimizer(torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1), scaler=scaler)
    seen = []
    for factor in losses:
        if factor is not None:
            loss = factor * (weight**2).sum()
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)  # as accelerate does before it clips
        optimizer.step()
        assert optimizer.step_was_skipped == (factor is not None and factor == float("inf"))
        optimizer.zero_grad()
        seen.append(weight.detach().clone())
    return seen, optimizer


@pytest.mark.parametrize("losses", [[None, 1.0, None, 2.0], [1.0, None, None, 3.0], [None, None]])
def test_an_update_without_a_gradient_changes_nothing_and_counts_as_taken(losses: list[float | None]) -> None:
    scaler = scaler_of(growth_interval=1000)
    with_scaler, _ = updates(scaler, losses)
    without, _ = updates(None, losses)
    for one, other in zip(with_scaler, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0)
    assert scaler.get_scale() == SCALE
    assert scaler.state_dict()["_growth_tracker"] == sum(loss is not None for loss in losses)


def test_an_overflow_is_still_skipped_and_halves_the_scale() -> None:
    scaler = scaler_of()
    before, after = updates(scaler, [1.0, float("inf")])[0]
    assert torch.equal(before, after) and scaler.get_scale() == SCALE / 2


def test_torch_itself_raises_there() -> None:
    """Were it not so, the class would have no purpose."""
    with pytest.raises(AssertionError, match=r"No inf checks were recorded|_scale is None"):
        updates(GradScaler("cpu"), [1.0, None])


def test_settings_are_kept_and_other_scalers_left_alone() -> None:
    class OfShards(GradScaler):
        pass

    own = OfShards("cpu")
    for scaler in (None, own):
        accelerator = SimpleNamespace(scaler=scaler)
        allow_updates_without_gradient(accelerator)
        assert accelerator.scaler is scaler
    assert scaler_of(growth_factor=3.0, growth_interval=7).state_dict() == {
        "scale": SCALE, "growth_factor": 3.0, "backoff_factor": 0.5, "growth_interval": 7, "_growth_tracker": 0,
    }  # fmt: skip
