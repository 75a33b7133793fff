"""Matrix products with float32 results, launches of passes, and how wide the tiles between them are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..products import full_float32

# Columns that a program of a pass holds at once, and its warps. Where it holds two models' logits, half as many: with
# 4096 the compiler gives a thread so many registers that a multiprocessor runs one program at a time.
BLOCK = 4096
PAIR_BLOCK = 2048
WARPS = 8
# Columns of a tile. Wide tiles keep the products efficient and the passes few; a pair of buffers is what they hold.
WIDEST = 16384
NARROWEST = 4096
# Rows times columns of one buffer at most, whatever is free: half a GiB of float32 logits.
TILE_ENTRIES = 1 << 27
# The share of the free memory that the buffers of one walk may take.
FREE_SHARE = 0.25
# Numbers of a hidden state that a program of a row's pass holds at once, and its warps.
SIZE_BLOCK = 256
ROW_WARPS = 4
# The shift of a row of which no logit was seen yet. Every weight is infinite at this scale: the first tile raises it.
NO_SHIFT = -float(1 << 20)
LN2 = math.log(2.0)  # a shift's unit, in nats


def tile_width(tokens: int, vocabulary: int, size: int, entry_bytes: int, free_bytes: int) -> int:
    """Columns of a tile for N tokens over V entries with hidden states of D.

    A tile is a whole number of blocks. The last bits of results depend on its width, which therefore follows the free
    memory only where that is short: the same batch on a card with room gives the same bits.

    Args:
        entry_bytes: what the walk's buffers hold of one token and one column.
        free_bytes: memory that could still be taken, in bytes; what the walk holds beside its buffers is subtracted.
    """
    room = FREE_SHARE * max(0, free_bytes - 8 * tokens * size)
    width = WIDEST
    while width > NARROWEST and (tokens * width > TILE_ENTRIES or tokens * width * entry_bytes > room):
        width //= 2
    while width // 2 >= max(vocabulary, BLOCK):
        width //= 2
    return width


def free_bytes(device: torch.device) -> int:
    """Memory of the device that torch could still hand out, in bytes."""
    if device.type != "cuda":
        return 1 << 40
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@dataclass(frozen=True)
class Tile:
    """Entries [start, end) of the vocabulary, and the head's rows there in the operands' dtype."""

    start: int
    end: int
    weight: Tensor  # [end - start, D]

    @property
    def columns(self) -> int:
        return self.end - self.start

    def blocks(self, block: int) -> dict[str, int]:
        """How often a program goes round to see all columns, for a pass with that block."""
        return {"BLOCKS": -(-self.columns // block), "BLOCK": block}


def tiles(weight: Tensor, width: int, operand_dtype: torch.dtype) -> Iterator[Tile]:
    """The vocabulary of a head `[V, D]` in tiles; rows of another dtype are converted a tile at a time."""
    vocabulary = weight.shape[0]
    for start in range(0, vocabulary, width):
        end = min(start + width, vocabulary)
        yield Tile(start, end, weight[start:end].to(operand_dtype))


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into float32 `out`, for operands of one dtype."""
    if 0 in a.shape:  # no rows, or nothing to add up
        return out.zero_()
    with full_float32(a.is_cuda and a.dtype == torch.float32):
        if a.is_cuda and a.dtype != torch.float32:
            return torch.mm(a, b, out_dtype=torch.float32, out=out)
        return torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b for float32 `total`, added up inside the product."""
    if not total.numel():
        return
    with full_float32(a.is_cuda and a.dtype == torch.float32):
        if a.is_cuda and a.dtype != torch.float32:
            torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
        else:
            torch.addmm(total, a.float(), b.float(), out=total)


def take(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """A contiguous `[rows, columns]` at the beginning of a flat buffer."""
    return buffer[: rows * columns].view(rows, columns)


def launch(kernel: Any, rows: int, device: torch.device, *arguments: Any, warps: int = WARPS, **constants: Any) -> None:
    """Run a pass with a program a row; nothing where there are no rows.

    Contraction to fused multiply-adds is off: see `arithmetic`.
    """
    if not rows:
        return
    if device.type != "cuda":
        kernel[(rows,)](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[(rows,)](*arguments, num_warps=warps, enable_fp_fusion=False, **constants)


def slots(count: int) -> int:
    """The power of two that holds `count`, which is how many numbers a program can hold at once."""
    return 1 << max(0, count - 1).bit_length()


def narrow_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b, added up in float32, into `out` of any dtype."""
    if out.dtype == a.dtype and a.is_cuda and a.shape[1]:
        with full_float32(a.dtype == torch.float32):
            torch.mm(a, b, out=out)
    elif out.dtype == torch.float32:
        multiply(a, b, out)
    else:
        out.copy_(multiply(a, b, torch.empty(out.shape, dtype=torch.float32, device=out.device)))
