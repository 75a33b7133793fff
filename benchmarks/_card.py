"""A GPU in the benchmarks: shapes of known models, time by events, torch's own peak of memory, and which card it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import torch

from _harness import MIB

# Hidden size and vocabulary; the weights are random, so that nothing is downloaded.
SHAPES = {
    "smollm2-135m": (576, 49152),
    "qwen3-0.6b": (1024, 151936),
    "qwen3-1.7b": (2048, 151936),
    "llama-3-8b": (4096, 128256),
    "qwen3-8b": (4096, 151936),
}


def timed(step: Callable[[], Any]) -> tuple[float, float, Any]:
    """(milliseconds, MiB at most over the state before, the step's result) of one step on the current GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end), (torch.cuda.max_memory_allocated() - before) / MIB, result


def card() -> dict[str, Any]:
    """Name, memory, driver and CUDA of the current GPU; empty where there is none."""
    if not torch.cuda.is_available():
        return {}
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "card": device.name,
        "card memory MiB": round(device.total_memory / MIB),
        "multiprocessors": device.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return lines[0] if lines else "unknown"
