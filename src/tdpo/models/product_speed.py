"""How fast this machine multiplies matrices in 16 bits and in float32: measured, and not read off the processor's flags.

A flag says that instructions exist and not that they are fast: a server with avx512_bf16 and without AMX can multiply
bfloat16 at two thirds of the speed of float32.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..records.json_files import read_json, write_json

HALF_DTYPES = ("bfloat16", "float16")
# [M, K] and [K, N] of the products that are timed. On a CPU: tokens of a batch through a layer of the bundled model and
# through a part of its head. Other devices need larger ones to be busy.
CPU_SHAPES = ((512, 576, 1536), (128, 576, 8192))
DEVICE_SHAPES = ((4096, 4096, 4096),)
ROUNDS = 5
ENOUGH_SECONDS = 0.15  # for one dtype and shape, after which no further round is begun
# A gain below this is eaten by the casts of a mixed precision, and may be noise of the measurement.
CLEARLY_FASTER = 1.2


@dataclass(frozen=True)
class ProductSpeed:
    """Speeds of matrix products in a 16-bit dtype and in float32, in GFLOP/s."""

    dtype: str
    half: float
    float32: float

    @property
    def prefers_half(self) -> bool:
        """Whether the 16-bit products are clearly faster."""
        return self.half > CLEARLY_FASTER * self.float32

    @property
    def is_slower(self) -> bool:
        """Whether the 16-bit products are clearly slower."""
        return self.float32 > CLEARLY_FASTER * self.half

    def describe(self) -> str:
        return f"{self.half:.0f} GFLOP/s in {self.dtype}, {self.float32:.0f} in float32"


_recorded: list[Path] = []  # the files of `recorded_in`, the innermost last


def product_speed(dtype: str = "bfloat16") -> ProductSpeed:
    """The speed of products in `dtype` beside float32, on the device on which models run.

    It is measured once in a process for a number of threads, in some tenths of a second; inside `recorded_in`, once for
    all processes that share the file.
    """
    if not _recorded:
        return _measured(dtype, _device(), torch.get_num_threads())
    path = _recorded[-1].with_name(f"{_recorded[-1].stem}_{dtype}.json")
    if not path.exists():
        _write_first(path, asdict(_measured(dtype, _device(), torch.get_num_threads())))
    return ProductSpeed(**read_json(path))


@contextmanager
def recorded_in(path: Path) -> Iterator[None]:
    """Inside, `product_speed` measures only what no process has written beside `path` yet, so that all choose alike."""
    _recorded.append(path)
    try:
        yield
    finally:
        _recorded.pop()


def _write_first(path: Path, value: dict[str, Any]) -> None:
    """Write `path` whole, unless another process was faster."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        write_json(whole, value)
        try:
            os.link(whole, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(whole, path)


def _device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


@cache
def _measured(dtype: str, device: str, threads: int) -> ProductSpeed:
    """The speed over all shapes, each with the best of several rounds in which the dtypes take turns."""
    if dtype not in HALF_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(HALF_DTYPES)}, got {dtype!r}")
    dtypes = (torch.float32, getattr(torch, dtype))
    totals = {d: 0.0 for d in dtypes}
    operations = 0
    for m, k, n in CPU_SHAPES if device == "cpu" else DEVICE_SHAPES:
        operations += 2 * m * k * n
        operands = {d: _operands(m, k, n, d, device) for d in dtypes}
        for d, seconds in _best_seconds(operands).items():
            totals[d] += seconds
    speeds = {d: operations / seconds / 1e9 for d, seconds in totals.items()}
    return ProductSpeed(dtype, speeds[dtypes[1]], speeds[torch.float32])


def _operands(m: int, k: int, n: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [M, K] and one [K, N] that lies in memory as the weights of a linear layer do."""
    return torch.ones(m, k, dtype=dtype, device=device), torch.ones(n, k, dtype=dtype, device=device).T


def _best_seconds(operands: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]]) -> dict[torch.dtype, float]:
    best = dict.fromkeys(operands, float("inf"))
    spent = dict.fromkeys(operands, 0.0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for turn in range(ROUNDS + 1):
            for dtype, (left, right) in operands.items():
                if spent[dtype] > ENOUGH_SECONDS:
                    continue
                seconds = _seconds_of(left, right)
                spent[dtype] += seconds
                if turn or spent[dtype] > ENOUGH_SECONDS:  # the first round also chooses kernels
                    best[dtype] = min(best[dtype], seconds)
    return best


def _seconds_of(left: torch.Tensor, right: torch.Tensor) -> float:
    _wait(left)
    started = time.perf_counter()
    left @ right
    _wait(left)
    return max(time.perf_counter() - started, 1e-9)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()
