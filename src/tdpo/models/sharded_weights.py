"""Weights that FSDP2 keeps in shards: whole for a while, given back, copied out and written back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .hidden_states import causal_lm_of
from .sharded_head import FSDP2_LAUNCH, holds_shards, is_fsdp_unit


def fsdp_units(model: nn.Module) -> list[Any]:
    """The modules of `model` whose weights FSDP2 shards together, itself included."""
    return [module for module in model.modules() if is_fsdp_unit(module)]


def release(model: nn.Module) -> None:
    """Have FSDP2 keep every weight of `model` in shards again.

    A unit may stay whole after a forward pass, and what is then written into its whole weights is lost.
    """
    for unit in fsdp_units(model):
        unit.reshard()


@contextmanager
def whole_weights(models: Sequence[Any]) -> Iterator[None]:
    """A context in which each process holds all weights of these models, so that it runs them on its own.

    Sampling takes as many forward passes as responses have tokens, and these differ between processes. With weights in
    shards every pass waits for all processes. Within the context none does; nothing can be trained. Models whose
    weights are not sharded by FSDP2 are left as they are. All processes enter and leave together.
    """
    sharded = [model for model in models if is_fsdp_unit(model)]
    kept = [(model, _stay_whole(model)) for model in sharded]
    try:
        yield
    finally:
        for model, units in kept:
            for unit in units:
                unit.set_reshard_after_forward(True, recurse=False)
            release(model)


@torch.no_grad()
def _stay_whole(model: Any) -> list[Any]:
    """Gather all weights of a model; returns the units that had let go of theirs after a forward pass.

    FSDP2 does not say which units these are, so a small pass shows them. It is also the first one that FSDP2 needs
    before a unit can be gathered by itself.
    """
    lm = causal_lm_of(model)
    ids = torch.zeros((1, 2), dtype=torch.long, device=_computing_device(lm))
    was_training = model.training
    model.eval()
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    model.train(was_training)
    units = fsdp_units(model)
    letting_go = [unit for unit in units if _own_weights_in_shards(unit)]
    for unit in letting_go:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    if holds_shards(model):
        raise RuntimeError(
            "some weights of the model are shards that FSDP2 does not gather (tensor parallelism, perhaps), and "
            f"sampling needs them whole. Shard with FSDP2 alone: `{FSDP2_LAUNCH}`."
        )
    return letting_go


def _computing_device(lm: Any) -> torch.device:
    weight = next(lm.parameters())
    mesh = getattr(weight, "device_mesh", None)  # of a shard, which may wait on another device
    if mesh is None or mesh.device_type == "cpu":
        return weight.device
    return torch.device(mesh.device_type, torch.accelerator.current_device_index())


def _own_weights_in_shards(unit: nn.Module) -> bool:
    """Whether weights of this unit, and not of units within it, are in shards."""
    inner = {id(p) for part in fsdp_units(unit) if part is not unit for p in part.parameters()}
    return any(is_shard(p) for p in unit.parameters() if id(p) not in inner)


def is_shard(weight: Any) -> bool:
    """Whether a tensor is this process's shard of one that is spread over processes."""
    dtensor = sys.modules.get("torch.distributed.tensor")  # not imported, it has made no shard
    return dtensor is not None and isinstance(weight, dtensor.DTensor)


def whole(weight: Tensor) -> Tensor:
    """The tensor whose shard `weight` is, put together on every process; all of them call this. Else itself."""
    return weight.full_tensor() if is_shard(weight) else weight  # type: ignore[attr-defined]


def kept_whole(weight: Tensor, *, keeps: bool) -> Tensor:
    """As `whole`, on the host of a process that `keeps` it and empty elsewhere: a device holds one at a time, and not
    all that a checkpoint is made of."""
    together = whole(weight)
    return together.cpu() if keeps else together.new_empty(0)


def as_shard_of(value: Tensor, weight: Tensor) -> Tensor:
    """This process's shard of `value`, laid out as that of `weight` is; where that is no shard, `value` itself.

    Every process has all of `value`, and all of them call this.
    """
    if not is_shard(weight):
        return value
    from torch.distributed.tensor import distribute_tensor

    shard: Any = weight
    return distribute_tensor(value.to(shard.device_mesh.device_type), shard.device_mesh, shard.placements)
