"""Run directories: what a training run leaves behind."""

from .checkpoints import COMPLETE, Checkpoints, DamagedCheckpoint, checkpoint_step, mark_complete
from .directory import RunDirectory, RunError
from .inputs import ChangedInputs
from .machine import accelerators, describe_machine, hardware, usable_cores, versions
from .resume import check_resumable

__all__ = [
    "COMPLETE",
    "ChangedInputs",
    "Checkpoints",
    "DamagedCheckpoint",
    "RunDirectory",
    "RunError",
    "accelerators",
    "check_resumable",
    "checkpoint_step",
    "describe_machine",
    "hardware",
    "mark_complete",
    "usable_cores",
    "versions",
]
