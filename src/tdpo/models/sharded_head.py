"""The head under FSDP2: the token statistics need it whole, FSDP2 keeps it in shards.

FSDP2 gathers the weights of a unit when one of the unit's modules runs, and the head never runs here. If its
unit contains a module that does (the final norm, a tied embedding), the weights are whole after the forward. If
not (a head alone in its unit, a root that releases its weights), they are still in shards, and the unit is asked to
gather them.

In both cases the statistics get the very parameters that FSDP2 made whole. FSDP2's own hooks scatter what accumulates
in their `.grad`: averaged over processes, in its reduction dtype, together with the share of a tied embedding and with
the micro-batches that `no_sync` held back. They also release the whole weights after the backward pass.
`DTensor.full_tensor` would do none of this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

# accelerate would have the first process alone load weights.
FSDP2_LAUNCH = "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false"


def modules_around(model: nn.Module, inner: nn.Module) -> list[nn.Module]:
    """`inner` and the modules of `model` that contain it, from the inside out."""
    path = next(name for name, module in model.named_modules() if module is inner).split(".")
    return [model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1)]


def is_fsdp_unit(module: Any) -> bool:
    """Whether FSDP2 shards this module's weights."""
    # If the module is not imported, it has made no unit; importing it takes 0.7 s.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def holds_shards(module: nn.Module) -> bool:
    """Whether some weight of the module is in shards at the moment."""
    dtensor = sys.modules.get("torch.distributed.tensor")
    return dtensor is not None and any(isinstance(p, dtensor.DTensor) for p in module.parameters())


def gather(around: Sequence[nn.Module]) -> None:
    """Have FSDP2 make the weights of a module whole, if they are in shards. Call it after the model's forward.

    Args:
        around: the module and those that contain it, as `modules_around` returns them.

    Raises:
        RuntimeError: the weights are in shards that are not FSDP2's.
    """
    module = around[0]
    if not holds_shards(module):
        return
    inside: list[Any] = [part for part in module.modules() if is_fsdp_unit(part)]
    outside: list[Any] = [part for part in around[1:] if is_fsdp_unit(part)]
    for unit in [*inside, *outside[:1]]:
        unit.unshard()
    if holds_shards(module):
        raise RuntimeError(
            "the head's weights are shards that no FSDP2 unit around the head gathers (tensor parallelism, perhaps). "
            f"Shard the model with FSDP2 alone: `{FSDP2_LAUNCH}`."
        )
