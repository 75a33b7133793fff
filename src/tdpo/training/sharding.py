"""Weights sharded over processes: which kinds can be trained, models beside the policy, and the model saved whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..models import Reference
from ..models.sharded_head import FSDP2_LAUNCH
from .arguments import Arguments, is_deepspeed


def check_sharding(args: Arguments) -> None:
    """Raise ValueError where weights would be sharded in a way that gives the operator no whole head, or where models
    would be empty on all processes but one: each asks them what they are, copies a head, and fills a cache.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 shards the head, and nothing gathers it outside the model's forward. Use FSDP2 "
            f"(`{FSDP2_LAUNCH}`), or ZeRO-2, which keeps weights whole."
        )
    if is_deepspeed(args) and _deepspeed_in_16_bits(args):
        raise ValueError(
            "DeepSpeed in 16 bits holds the policy in them and leaves the reference as it is, so the KL would not "
            f"start at 0. Use FSDP2 (`{FSDP2_LAUNCH}`), or ZeRO-2 in float32 (mixed_precision: no)."
        )
    if _fsdp_version(args) == 1:
        raise ValueError(
            "FSDP1 shards the head, and nothing gathers it outside the model's forward. Use FSDP2: "
            f"`{FSDP2_LAUNCH}`, or fsdp=True with fsdp_config={{'version': 2}}."
        )
    if _loads_on_one_process(args):
        raise ValueError(
            "with fsdp_cpu_ram_efficient_loading (the default of accelerate's launcher) the first process alone loads "
            "weights, and the others would compute with empty ones before the model is sharded. Switch it off: "
            f"`{FSDP2_LAUNCH}`, or fsdp_cpu_ram_efficient_loading: false in the launcher's file."
        )


def _fsdp_version(args: Arguments) -> int | None:
    """The version of FSDP that accelerate will use, by the arguments or by the environment of its launcher."""
    plugin = getattr(args, "fsdp_plugin_args", None)
    if plugin is not None:
        return int(plugin.get("fsdp_version", 1))
    return int(os.environ.get("FSDP_VERSION", "1")) if _is_set("ACCELERATE_USE_FSDP") else None


def _deepspeed_in_16_bits(args: Arguments) -> bool:
    """Whether DeepSpeed's configuration, or the arguments, ask for bfloat16 or float16."""
    plugin: Any = args.deepspeed_plugin
    settings = plugin.deepspeed_config
    enabled = [settings.get(kind, {}).get("enabled") is True for kind in ("bf16", "fp16")]
    return any(enabled) or args.mixed_precision != "no" or args.precision not in ("auto", "float32")


def _loads_on_one_process(args: Arguments) -> bool:
    """Whether transformers leaves a model empty on all processes but the first."""
    plugin = getattr(args, "fsdp_plugin_args", None)
    if plugin is not None:
        return bool(plugin.get("cpu_ram_efficient_loading"))
    return _is_set("ACCELERATE_USE_FSDP") and _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def shard_beside(accelerator: Any, model: Any) -> Any:
    """A reference or a critic's model, sharded as accelerate will shard the policy.

    `Accelerator.prepare` takes one model and its optimizer under FSDP2, and `prepare_model` would leave a reference
    whole on every device and in another precision than the policy, with a KL at the start that is not 0.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    # Preparing a model writes its layer classes into the plugin; the policy's may be others.
    layer_classes = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = layer_classes


def placed(trainer: Any, reference: Reference) -> Reference:
    """The reference on the policy's device, sharded as the policy is."""
    model = reference.model
    if model is None:
        return reference
    if trainer.accelerator.is_fsdp2:
        model = shard_beside(trainer.accelerator, model)
    elif trainer.is_deepspeed_enabled:
        model = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    else:
        model.to(trainer.args.device)
    return replace(reference, model=model)


def average_gradients(module: nn.Module, processes: int) -> None:
    """Have every gradient of a module that is whole on each process averaged over processes after a backward pass.

    What DistributedDataParallel does, for a few weights, and without a wrapper around the module.
    """

    def average(weight: torch.Tensor) -> None:
        # What an earlier micro-batch has left is an average already, and stays what it is.
        assert weight.grad is not None
        torch.distributed.all_reduce(weight.grad)  # gloo has no average
        weight.grad.div_(processes)

    for weight in module.parameters():
        weight.register_post_accumulate_grad_hook(average)


@contextmanager
def whole_model_saved(accelerator: Any) -> Iterator[None]:
    """While it lasts, transformers saves a sharded model as one that is whole, whatever checkpoints are made of.

    Under FSDP2's default, SHARDED_STATE_DICT, `Trainer.save_model` writes nothing at all.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    from torch.distributed.fsdp import StateDictType

    kind, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = kind
