"""FSDP2 on two CPU processes, as `accelerate launch` with this repository's configuration file sets it up."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from helpers.several_processes import TWO_ON_CPUS, run_two_processes

CONFIGURATION = Path(__file__).parents[2] / "examples/accelerate/fsdp2.yaml"
SHARDED = ("--config_file", str(CONFIGURATION), *TWO_ON_CPUS)


def run_two_sharded(module: str, folder: Path, functions: Sequence[str]) -> None:
    """Functions of a test module on two processes, with what docs/scaling.md gives to `accelerate launch`.

    The module must hold `shard_on_cpus` too, which every process calls first.
    """
    run_two_processes(module, folder, ("shard_on_cpus", *functions), SHARDED)


def fresh_accelerator() -> None:
    """accelerate keeps FSDP's settings, the layer classes of the last model among them, for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def shard_on_cpus(_folder: Path) -> None:
    """Have accelerate shard on CPUs, which torch can and accelerate takes as a wish for plain data parallelism."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    initialize = AcceleratorState.__init__

    @functools.wraps(initialize)
    def initialize_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = initialize_sharded


def put_together(model: Any, *, trained_only: bool = True) -> dict[str, torch.Tensor]:
    """The weights in shards, put together; a weight that is frozen as a shard counts as frozen."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad or not trained_only
    }
