"""The spans of rows that hold several sequences, read off the mask of the rows.

A row of a prompt and K responses under its 4-D mask costs T² products, though every response sees only its prompt and
itself. A span is a causal stretch of the row that may look back at one prompt, so its attention needs no more than
these products. `span_attention.py` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

# What the calls of one span cost beside their products: as many pairs of positions (query × key) could be computed.
SPAN_COST = 6000


@dataclass(frozen=True)
class Span:
    """Positions [start, end) of a row. Each sees the span's positions up to itself, and [prompt_start, prompt_end)."""

    start: int
    end: int
    prompt_start: int = 0
    prompt_end: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def prompt_length(self) -> int:
        return self.prompt_end - self.prompt_start

    @property
    def products(self) -> int:
        """How many pairs of positions its attention computes; without a prompt, the causal kernel leaves out half."""
        return self.length * (self.prompt_length + self.length) if self.prompt_length else self.length**2 // 2


@dataclass(frozen=True)
class Block:
    """Consecutive rows with the same spans and as much padding behind them.

    `masks` has the additive mask `[1, 1, length, prompt + length]` of each span, None for a span without a prompt.
    """

    rows: int
    spans: tuple[Span, ...]
    padding: int
    masks: tuple[Tensor | None, ...]


class SpanMask(Tensor):
    """An additive mask `[R, 1, T, T]` that knows the spans of its rows; what is computed from it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    blocks: Sequence[Block]


def spans_of(visible: Tensor) -> list[Span] | None:
    """The spans of one row's mask, bool `[T, T]` (query, key); None where the row is not spans with padding behind.

    Positions that do not see themselves are padding. Nothing sees them, and it does not matter what they see.
    """
    starts = _starts_of(visible)
    return None if starts is None else _spans_from(starts, visible)


def _starts_of(visible: Tensor) -> list[int] | None:
    """Where the spans of a row begin, and its length as the last; None where what comes first is no position."""
    length = int(visible.diagonal().sum())
    if not length or not bool(visible.diagonal()[:length].all()):
        return None
    part = visible[:length]
    count = part.sum(dim=1)
    continues = part.diagonal(-1)[: length - 1] & (count[1:] == count[:-1] + 1)
    return [0, *((~continues).nonzero()[:, 0] + 1).tolist(), length]


def _spans_from(starts: Sequence[int], visible: Tensor) -> list[Span] | None:
    part = visible[: starts[-1]]
    of_spans = torch.zeros_like(part)
    spans = []
    for start, end in pairwise(starts):
        before = part[start, :start].nonzero()[:, 0].tolist()
        span = Span(start, end, *((before[0], before[-1] + 1) if before else (0, 0)))
        of_spans[start:end, span.prompt_start : span.prompt_end] = True
        of_spans[start:end, start:end] = torch.ones(span.length, span.length, dtype=torch.bool).tril_()
        spans.append(span)
    return spans if torch.equal(of_spans, part) else None


def with_spans(additive: Tensor, visible: Tensor) -> Tensor:
    """`additive` `[R, 1, T, T]` as a `SpanMask` where cutting its rows into spans saves time, else as it is.

    It saves time on a CPU, and where the masked products outweigh the calls. `visible` is the same mask as bool.
    """
    too_narrow = visible.shape[-1] ** 2 < 2 * SPAN_COST  # a row that shares anything has two spans at least
    if visible.device.type != "cpu" or visible.shape[1] != 1 or too_narrow:
        return additive
    rows = []
    for row in visible[:, 0]:
        starts = _starts_of(row)
        # More spans than all products could pay for: they need not be looked at, which is work for each.
        if starts is None or visible.numel() <= SPAN_COST * (len(starts) - 1):
            return additive
        spans = _spans_from(starts, row)
        if spans is None:
            return additive
        rows.append(spans)
    blocks = _blocks(rows, visible.shape[-1], additive.dtype)
    saved = visible.numel() - sum(span.products for spans in rows for span in spans)
    if saved <= SPAN_COST * sum(len(block.spans) for block in blocks):
        return additive
    mask = additive.as_subclass(SpanMask)
    mask.blocks = blocks
    return mask


def _blocks(rows: Sequence[list[Span]], width: int, dtype: torch.dtype) -> list[Block]:
    masks: dict[tuple[int, int], Tensor] = {}

    def mask_of(span: Span) -> Tensor | None:
        if not span.prompt_length:
            return None
        shape = span.length, span.prompt_length
        if shape not in masks:
            later = torch.full((span.length, span.length), torch.finfo(dtype).min, dtype=dtype).triu_(1)
            masks[shape] = torch.cat([later.new_zeros(shape), later], dim=1)[None, None]
        return masks[shape]

    return [
        Block(len(list(alike)), spans, width - spans[-1].end, tuple(mask_of(span) for span in spans))
        for spans, alike in groupby(tuple(row) for row in rows)
    ]
