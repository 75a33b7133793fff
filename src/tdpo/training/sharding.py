"""Weights sharded over processes: which kinds can be trained, the reference's shards, and the model saved whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import is_deepspeed_zero3_enabled

from .offline.config import TDPOConfig


def check_sharding(args: TDPOConfig) -> None:
    """Raise ValueError where weights would be sharded in a way that gives the operator no whole head."""
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 shards the head, and nothing gathers it outside the model's forward. Use FSDP2 "
            "(`accelerate launch --use_fsdp --fsdp_version 2`), or ZeRO-2, which keeps weights whole."
        )
    if _fsdp_version(args) == 1:
        raise ValueError(
            "FSDP1 shards the head, and nothing gathers it outside the model's forward. Use FSDP2: `accelerate launch "
            "--use_fsdp --fsdp_version 2`, or fsdp=True with fsdp_config={'version': 2}."
        )


def _fsdp_version(args: TDPOConfig) -> int | None:
    """The version of FSDP that accelerate will use, by the arguments or by the environment of its launcher."""
    plugin = getattr(args, "fsdp_plugin_args", None)
    if plugin is not None:
        return int(plugin.get("fsdp_version", 1))
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return int(os.environ.get("FSDP_VERSION", "1"))
    return None


def shard_reference(accelerator: Any, reference: Any) -> Any:
    """The reference sharded as accelerate will shard the policy.

    `Accelerator.prepare` takes one model and its optimizer under FSDP2, and `prepare_model` would leave the reference
    whole on every device and in another precision than the policy, with a KL at the start that is not 0.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    # Preparing a model writes its layer classes into the plugin; the policy's may be others.
    layer_classes = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    try:
        return fsdp2_prepare_model(accelerator, reference)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = layer_classes


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
