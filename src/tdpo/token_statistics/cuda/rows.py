"""Logits and dot products of a few entries a row, in float64, without a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Head
from . import products
from .row_passes import write_exact_logits, write_row_dots


def bias_or(stand_in: Tensor, head: Head) -> Tensor:
    """The head's bias, or a tensor that stands where none is read."""
    return stand_in if head.bias is None else head.bias.contiguous()


def exact_logits(hidden: Tensor, head: Head, entries: Tensor) -> Tensor:
    """Logits `[N, K]` float64 of the entries `[N, K]`, without a matrix product."""
    entries = entries.int().contiguous()
    count = entries.shape[1]
    out = torch.empty(entries.shape, dtype=torch.float64, device=hidden.device)
    size = hidden.shape[1]
    products.launch(
        write_exact_logits, len(hidden), hidden.device,
        hidden, head.weight, *head.weight.stride(), bias_or(hidden, head), entries, out, size,
        SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK,
        ENTRIES=count, SLOTS=products.slots(count), HAS_BIAS=head.bias is not None, SCALE=float(head.scale),
        warps=products.ROW_WARPS,
    )  # fmt: skip
    return out


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_d a·b of each row of `[N, D]`, float64 `[N]`."""
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty(len(a), dtype=torch.float64, device=a.device)
    size = a.shape[1]
    products.launch(
        write_row_dots, len(a), a.device, a, b, out, size,
        SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK, warps=products.ROW_WARPS,
    )  # fmt: skip
    return out
