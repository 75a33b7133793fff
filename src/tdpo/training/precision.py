"""What a trainer computes in: settled when it knows its model, and before anything is computed."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import nn

from ..config.training_defaults import learning_rate
from ..models import has_adapter
from ..models.adapters import leave_casts_to_autocast
from ..models.precision import (
    Precision,
    adapters_dtype,
    choose_precision,
    dtype_name,
    hold_weights,
    loaded_dtype,
)
from ..models.product_speed import HALF_DTYPES, ProductSpeed, product_speed
from ..models.quantization import is_quantized_model
from .arguments import AUTOCAST, Arguments, is_deepspeed

logger = logging.getLogger(__name__)


def settle_precision(model: Any, args: Arguments) -> Precision:
    """Choose the precision, hold the model's weights in it, and write into `args` what transformers needs to know.

    With DeepSpeed, whose own configuration says what it computes in, "auto" changes nothing.

    Raises:
        ValueError: weights that are quantised would have to be held in another dtype.
    """
    quantized = is_quantized_model(model)
    if quantized and args.precision != "auto":
        raise ValueError(
            f"precision={args.precision!r} has no effect on the model's weights, which are quantised; leave it auto, "
            "or pass bf16=True for products in bfloat16"
        )
    saved, adapters, autocast = loaded_dtype(model), adapters_dtype(model), AUTOCAST.get(args.mixed_precision)
    if is_deepspeed(args) and args.precision == "auto":
        return Precision(saved, autocast or saved, adapters, "as DeepSpeed's configuration says")
    precision = choose_precision(
        args.precision,
        saved,
        adapters=adapters,
        device=device_of_training(args),
        autocast=autocast,
        measured=_speed_for_all_processes,
    )
    if not quantized and precision.weights != saved:
        hold_weights(model, precision.weights)
    if autocast is None and precision.is_mixed:
        args.mixed_precision = next(name for name, dtype in AUTOCAST.items() if dtype == precision.products)
        args.bf16, args.fp16 = args.mixed_precision == "bf16", args.mixed_precision == "fp16"
    if args.mixed_precision in AUTOCAST and device_of_training(args).type == "cuda":
        leave_casts_to_autocast(model)
    # accelerate's state belongs to the process. One that an earlier trainer left would refuse another precision.
    if AcceleratorState._shared_state.get("_mixed_precision", args.mixed_precision) != args.mixed_precision:
        AcceleratorState._reset_state()
    _warn_of_rounded_steps(model)
    return precision


def device_of_training(args: Arguments) -> torch.device:
    """Where products are computed, which decides about their dtype."""
    return args.device


def _speed_for_all_processes(device: torch.device) -> ProductSpeed:
    """What the first process measured: processes that chose each by its own would train one model in two precisions."""
    [speed] = broadcast_object_list([product_speed(device)])
    return speed


def hold_beside(model: Any, loaded: str, precision: Precision) -> Any:
    """A loaded reference in the precision of the policy, if it was loaded in the policy's dtype `loaded`; in place.

    Two models in different dtypes would have a KL that is not 0 at the start. One that came in another dtype than the
    policy is the caller's choice, and `reference_for` points it out.
    """
    is_alike = isinstance(model, nn.Module) and loaded_dtype(model) == loaded
    if is_alike and loaded != precision.weights and not is_quantized_model(model):
        hold_weights(model, precision.weights)
    return model


def hold_critic(body: Any, precision: Precision) -> Any:
    """A critic's own model, all of whose weights are trained: in float32, unless 16 bits were asked for; in place."""
    if isinstance(body, nn.Module) and loaded_dtype(body) in HALF_DTYPES and precision.why != "as asked for":
        hold_weights(body, "float32")
    return body


def settle_learning_rate(model: Any, args: Arguments, method: str) -> None:
    """Write the default learning rate into `args` where the caller chose none."""
    if args.learning_rate is None:
        args.learning_rate = learning_rate(method, adapter=has_adapter(model))


def _warn_of_rounded_steps(model: nn.Module) -> None:
    trained = {dtype_name(p.dtype) for p in model.parameters() if p.requires_grad}
    if half := sorted(trained & set(HALF_DTYPES)):
        logger.warning(
            "Weights are trained in %s, where a step below about 1/500 of a weight is rounded away. Leave precision "
            "auto, which holds them in float32, or train an adapter (its weights are float32).",
            ", ".join(half),
        )
