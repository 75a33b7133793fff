"""Matrix products whose result is float32 whatever the operands' dtype, and the memory that a walk reuses."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def float32_products_in_bf16(enabled: bool) -> Iterator[None]:
    """Let float32 matrix products of the CPU use bf16 units; exact only for operands that hold bf16 values.

    CPU kernels have no bf16 × bf16 → float32 product; widening the operands and narrowing only
    inside the kernel gives one. The switch is process-wide, so it is set for this context alone and then restored.
    """
    if not enabled:
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@contextmanager
def full_float32(enabled: bool) -> Iterator[None]:
    """Keep float32 products of a GPU in float32 where TF32 is allowed: ten bits of a logit leave no KL."""
    setting: Any = torch.backends.cuda.matmul
    if not enabled or setting.fp32_precision == "ieee":
        yield
        return
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before


class Workspace:
    """Memory that the tiles of one walk share.

    If every tile took new memory, the heap would hold it in pieces several times over, and the system would clear
    every page again.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this shape; it overwrites the one that was last taken under this name."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=like.device)
        return buffer[:size].view(*shape)

    def converted(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix `value`, contiguous or the transpose of such a one, in `dtype` (which may be narrower)."""
        if value.dtype == dtype:
            return value
        if value.is_contiguous():
            return self.take(name, value.shape, value, dtype).copy_(value)
        return self.take(name, value.T.shape, value, dtype).copy_(value.T).T


def wide_product(a: Tensor, b: Tensor, work: Workspace | None = None, name: str = "") -> Tensor:
    """a @ b with the result in float32 (float64 for float64), whatever the operands' dtype.

    Where `work` is given, the result lies in its buffer `name`.
    """
    if _has_wide_kernel(a, b):
        return torch.mm(a, b, out_dtype=torch.float32)
    work = work or Workspace()
    with _wide_operands(a, b, work) as (left, right):
        return torch.mm(left, right, out=work.take(name, (a.shape[0], b.shape[1]), left, left.dtype))


def add_wide_product(total: Tensor, a: Tensor, b: Tensor, work: Workspace) -> None:
    """total += a @ b for a float32 (float64) `total`, the product as wide as `wide_product` makes it."""
    if _has_wide_kernel(a, b):
        total += torch.mm(a, b, out_dtype=torch.float32)
        return
    with _wide_operands(a, b, work) as (left, right):
        if left.dtype == total.dtype:
            torch.addmm(total, left, right, out=total)
        else:
            total += left @ right


def _has_wide_kernel(a: Tensor, b: Tensor) -> bool:
    return a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)


@contextmanager
def _wide_operands(a: Tensor, b: Tensor, work: Workspace) -> Iterator[tuple[Tensor, Tensor]]:
    """Both operands in float32 (float64 if one is float64); their product may use the units of their own dtypes."""
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    on_cpu = a.device.type == "cpu"
    exact = on_cpu and a.dtype == b.dtype == torch.bfloat16
    with float32_products_in_bf16(exact), full_float32(not on_cpu and wide == torch.float32):
        yield work.converted("left operand", a, wide), work.converted("right operand", b, wide)


def narrow_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a @ b into `out`, which is no wider than the operands, with the fastest kernel for their dtypes."""
    if a.device.type == "cpu" and a.dtype in (torch.bfloat16, torch.float16) and not _cpu_multiplies_bf16():
        out.copy_(wide_product(a, b))
    elif out.dtype != a.dtype:
        out.copy_(a @ b)
    else:
        torch.mm(a, b, out=out)


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 units. Without them a bf16 product takes ten times as long as a float32 one."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
