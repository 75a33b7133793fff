"""What each position of a row sees, as ranges: `[R, 3, T]` int32 in place of a mask `[R, 1, T, T]`.

A position t of a row sees the positions of its own span up to itself, [own, t], and those of one prompt, [start, end).
The three numbers stand in this order. Padding has no own span (own is T) and sees the row's first token, so that its
softmax is no 0/0; nothing sees padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # positions of a block of FlexAttention, of queries and of keys


def ranges_of(rows: list[list[tuple[int, int, int, int]]], width: int) -> Tensor:
    """The ranges `[R, 3, T]` of rows of spans (length, own, start, end), filled with padding to `width`."""
    ranges = torch.tensor([width, 0, 1], dtype=torch.int32)[None, :, None].repeat(len(rows), 1, width)
    for r, spans in enumerate(rows):
        lengths, *seen = torch.tensor(spans, dtype=torch.int32).T
        own = torch.stack(seen).repeat_interleave(lengths, dim=1)
        ranges[r, :, : own.shape[1]] = own
    return ranges


def visible(own: Tensor, start: Tensor, end: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Whether positions `query`, with these numbers of theirs, see positions `key`, bool."""
    return ((key >= own) & (key <= query)) | ((key >= start) & (key < end))


def dense_mask(ranges: Tensor) -> Tensor:
    """The same as a mask, bool `[R, 1, T, T]`."""
    position = torch.arange(ranges.shape[-1], device=ranges.device)
    own, start, end = ranges[..., None].unbind(1)
    return visible(own, start, end, position[:, None], position)[:, None]


def counted_positions(ranges: Tensor) -> Tensor:
    """Which positions are no padding, bool `[R, T]`."""
    return ranges[:, 0] < ranges.shape[-1]


def few_widths(width: int) -> int:
    """The next of few widths, whole blocks each: eight for every doubling, so that little is compiled and little is
    padding."""
    step = max(BLOCK, 2 ** max(width.bit_length() - 4, 0))
    return -(-width // step) * step
