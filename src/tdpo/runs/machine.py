"""The machine that a run was made on: command, versions, hardware. They are kept in environment.json."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..records.files import now

PACKAGES = (
    "tdpo", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "pydantic",
)  # fmt: skip


def describe_machine(seed: int, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The content of environment.json: JSON-ready, without names of the machine or of its user."""
    name, *rest = sys.argv if argv is None else argv
    # Under `python -m` and `accelerate launch` the name is a file of this package.
    argv = ["tdpo" if name.endswith(("tdpo/cli/main.py", "tdpo/__main__.py")) else Path(name).name, *rest]
    return {
        "command": shlex.join(argv),
        "argv": argv,
        "started": now(),
        "versions": versions(),
        "hardware": hardware(),
        "seed": seed,
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed versions by package; None where one is missing."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(name: str) -> str | None:
    try:
        # This package's own number is read from the code that runs: an editable installation keeps an old one.
        return __version__ if name == "tdpo" else version(name)
    except PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """CPU, usable cores, memory in GiB, and the accelerators that torch sees."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpu": accelerators(),
    }


def usable_cores() -> int:
    """The number of cores that this process may run on; in a container it can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def accelerators() -> list[dict[str, Any]]:
    """Name and memory in GiB of each CUDA device, or Apple's one; empty on a CPU. Loads torch."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [{"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1)} for d in devices]
    if torch.backends.mps.is_available():
        return [{"name": "Apple MPS", "memory_gib": None}]
    return []
