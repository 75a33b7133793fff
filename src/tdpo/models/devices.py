"""Where models run: the device that a recipe or a command names, or the accelerator that is there."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def device_of(choice: str = "auto") -> torch.device:
    """The device of a choice: "cpu", "cuda" (the current GPU), "cuda:1", "mps", or "auto": a GPU, else MPS, else the
    CPU.

    A GPU becomes the current one of this process, where trainers then train. A process of several, as `accelerate
    launch` starts them, has the GPU of its number.

    Raises:
        ValueError: there is no such device here; the message says which there are.
    """
    kind, number = check_device(choice)
    if kind != "cuda":
        return torch.device(kind)
    launched, count = os.environ.get("LOCAL_RANK"), _count("cuda")
    index = int(number) if number else int(launched) % count if launched else torch.cuda.current_device()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_device(choice: str) -> tuple[str, str]:
    """The kind of device of a choice, and its number or "". Raises as `device_of`, but takes no device: one that
    leaves the work to other processes would keep memory of a GPU for nothing."""
    if not NAMES.fullmatch(choice):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:0 (cuda:1, …) or mps, got {choice!r}")
    if choice == "auto":
        choice = next((kind for kind in ("cuda", "mps") if _count(kind)), "cpu")
    kind, _, number = choice.partition(":")
    if _count(kind) <= int(number or 0):
        raise ValueError(
            f"there is no device {choice} here: {_present()}. Name one of these (model.device, --device), or auto."
        )
    return kind, number


def placed(model: Any, choice: str | None) -> Any:
    """The model on the device of a choice, in place; None leaves it where it is, as do weights that are placed by
    others (quantised ones, or those of several devices)."""
    if choice is None or getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None):
        return model
    return model.to(device_of(choice))


def share_gpus(worker: int) -> None:
    """Give one of several processes its GPU: worker w has the GPU w modulo their number, so that they are shared
    evenly. Without a GPU nothing happens."""
    if count := _count("cuda"):
        torch.cuda.set_device(worker % count)


def describe_device(device: torch.device) -> str:
    """The device in a line for the log."""
    if device.type != "cuda":
        return {"cpu": "the CPU", "mps": "Apple's GPU (mps)"}.get(device.type, str(device))
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(torch.backends.mps.is_available()) if kind == "mps" else 1


def _present() -> str:
    gpus = [f"cuda:{i}" for i in range(_count("cuda"))]
    return "torch sees " + ", ".join([*gpus, *(["mps"] if _count("mps") else []), "cpu"])
