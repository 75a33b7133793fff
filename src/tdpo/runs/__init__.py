"""Run directories: what a training run leaves behind."""

from .checkpoints import COMPLETE, Checkpoints, DamagedCheckpoint, checkpoint_step, mark_complete
from .directory import RunDirectory, RunError
from .environment import accelerators, describe_environment, hardware, usable_cores, versions
from .files import append_jsonl, is_main_process, read_json, read_jsonl, write_json, write_text
from .inputs import ChangedInputs
from .resume import check_resumable

__all__ = [
    "COMPLETE",
    "ChangedInputs",
    "Checkpoints",
    "DamagedCheckpoint",
    "RunDirectory",
    "RunError",
    "accelerators",
    "append_jsonl",
    "check_resumable",
    "checkpoint_step",
    "describe_environment",
    "hardware",
    "is_main_process",
    "mark_complete",
    "read_json",
    "read_jsonl",
    "usable_cores",
    "versions",
    "write_json",
    "write_text",
]
