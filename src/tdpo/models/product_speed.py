"""How fast this machine multiplies matrices in 16 bits and in float32: measured, and not read off its flags.

A flag says that instructions exist and not that they are fast: a server with avx512_bf16 and without AMX can multiply
bfloat16 at two thirds of the speed of float32.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
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
CPU_SHAPES = ((512, 576, 1536), (128, 576, 4096))
DEVICE_SHAPES = ((4096, 4096, 4096),)
ROUNDS = 3
ENOUGH_SECONDS = 0.1  # for one dtype and shape, after which no further round is begun
# A gain below this is eaten by the casts of a mixed precision, and may be noise of the measurement.
CLEARLY_FASTER = 1.2


@dataclass(frozen=True)
class ProductSpeed:
    """Speeds of matrix products in a 16-bit dtype and in float32, in GFLOP/s; of a CPU, those of one core."""

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


Operands = tuple[torch.Tensor, torch.Tensor]
_recorded: list[Path] = []  # the files of `recorded_in`, the innermost last


def product_speed(device: torch.device, dtype: str = "bfloat16") -> ProductSpeed:
    """The speed of products in `dtype` beside float32, on the device on which models run.

    It is measured once in a process, in some tenths of a second; inside `recorded_in`, once for all processes that
    share the file.
    """
    if not _recorded:
        return measure(dtype, str(device))
    path = _recorded[-1].with_name(f"{_recorded[-1].stem}_{dtype}.json")
    if not path.exists():
        _write_first(path, asdict(measure(dtype, str(device))))
    return ProductSpeed(**read_json(path))


def why_slow(dtype: str, device: torch.device) -> str | None:
    """A sentence for the user where products in `dtype` are measured to be slower than in float32 or, not on a CPU,
    float32 slower than bfloat16; else None."""
    if dtype in HALF_DTYPES and (speed := product_speed(device, dtype)).is_slower:
        better = "float32"
    elif dtype == "float32" and device.type != "cpu" and (speed := product_speed(device)).prefers_half:
        better = speed.dtype
    else:
        return None
    return f"products in {dtype} are slow on this machine ({speed.describe()}): model.dtype={better} is faster"


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
            whole.replace(path)


@cache
def measure(dtype: str, device: str) -> ProductSpeed:
    """The speed over all shapes, each with the best of several rounds in which the dtypes take turns."""
    if dtype not in HALF_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(HALF_DTYPES)}, got {dtype!r}")
    dtypes = (torch.float32, getattr(torch, dtype))
    seconds = dict.fromkeys(dtypes, 0.0)
    shapes = CPU_SHAPES if device == "cpu" else DEVICE_SHAPES
    with _one_thread(), torch.no_grad():
        for m, k, n in shapes:
            for kind, best in _best_seconds({kind: _operands(m, k, n, kind, device) for kind in dtypes}).items():
                seconds[kind] += best
    operations = sum(2 * m * k * n for m, k, n in shapes)
    speeds = {kind: operations / seconds[kind] / 1e9 for kind in dtypes}
    return ProductSpeed(dtype, speeds[dtypes[1]], speeds[torch.float32])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch uses one thread: on a busy machine, several would wait for one another and not for products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _operands(m: int, k: int, n: int, dtype: torch.dtype, device: str) -> Operands:
    """A matrix [M, K] and one [K, N] that lies in memory as the weights of a linear layer do."""
    return torch.ones(m, k, dtype=dtype, device=device), torch.ones(n, k, dtype=dtype, device=device).T


def _best_seconds(operands: Mapping[torch.dtype, Operands]) -> dict[torch.dtype, float]:
    best = dict.fromkeys(operands, float("inf"))
    spent = dict.fromkeys(operands, 0.0)
    for turn in range(ROUNDS + 1):
        for dtype, (left, right) in operands.items():
            if spent[dtype] > ENOUGH_SECONDS:
                continue
            seconds = _seconds_of(left, right)
            if not turn and left.device.type != "cpu":
                continue  # a GPU loads its library and kernels with the first product, which can take a second
            spent[dtype] += seconds
            if turn or spent[dtype] > ENOUGH_SECONDS:  # the first round also chooses kernels
                best[dtype] = min(best[dtype], seconds)
    return best


def _seconds_of(left: torch.Tensor, right: torch.Tensor) -> float:
    """How long a product takes: on a CPU the thread's own seconds, which other processes do not add to."""
    if left.device.type == "cpu":
        started = time.thread_time()
        torch.mm(left, right)
        return max(time.thread_time() - started, 1e-9)
    torch.accelerator.synchronize()
    started = time.perf_counter()
    torch.mm(left, right)
    torch.accelerator.synchronize()
    return max(time.perf_counter() - started, 1e-9)
