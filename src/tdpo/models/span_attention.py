"""Attention in rows that hold several sequences, without computing what the mask takes away.

A row of a prompt and K responses under its 4-D mask costs T² products, though every response sees its prompt and
itself alone. Here the row is cut into spans, each a causal stretch that may look back at one prompt, and every
span is a call of its own to the attention that transformers has. The spans are read off the mask and
written beside it: a model that passes the mask on unchanged gets them, any other keeps its masked attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

# What a span's calls cost beside their products, in pairs of positions (query × key) that could be computed meanwhile.
SPAN_COST = 6000

_HINT = "tdpo_blocks"


@dataclass(frozen=True)
class Span:
    """Positions [start, end) of a row: each sees those of the span up to itself, and [prompt_start, prompt_end)."""

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
        """Pairs of positions that its attention computes; without a prompt the causal kernel leaves half out."""
        return self.length * (self.prompt_length + self.length) if self.prompt_length else self.length**2 // 2


@dataclass(frozen=True)
class Block:
    """Consecutive rows cut alike; `masks` has each span's additive mask `[1, 1, length, prompt + length]` or None."""

    rows: int
    spans: tuple[Span, ...]
    padding: int
    masks: tuple[Tensor | None, ...]


def spans_of(visible: Tensor) -> list[Span] | None:
    """The spans of one row's mask, bool `[T, T]` (query, key); None where it is not made of spans and padding behind.

    Positions that do not see themselves are padding: nothing sees them, and what they see is nobody's concern.
    """
    filled = int(visible.diagonal().sum())
    seen = visible[:filled]
    if not filled or not bool(visible.diagonal()[:filled].all()):
        return None
    count = seen.sum(dim=1)
    goes_on = seen.diagonal(-1)[: filled - 1] & (count[1:] == count[:-1] + 1)
    starts = [0, *((~goes_on).nonzero()[:, 0] + 1).tolist()]
    rebuilt = torch.zeros_like(seen)
    spans = []
    for start, end in zip(starts, [*starts[1:], filled], strict=True):
        before = seen[start, :start].nonzero()[:, 0].tolist()
        span = Span(start, end, *((before[0], before[-1] + 1) if before else (0, 0)))
        rebuilt[start:end, span.prompt_start : span.prompt_end] = True
        rebuilt[start:end, start:end] = torch.ones(span.length, span.length, dtype=torch.bool).tril_()
        spans.append(span)
    return spans if torch.equal(rebuilt, seen) else None


def note_spans(additive: Tensor, visible: Tensor) -> Tensor:
    """`additive` `[R, 1, T, T]`, with the spans of `visible` (the same as bool) noted where they save time: on a CPU,
    and where the masked products outweigh the calls."""
    too_narrow = visible.shape[-1] ** 2 < 2 * SPAN_COST  # a row that shares anything has two spans at least
    if visible.device.type != "cpu" or visible.shape[1] != 1 or too_narrow:
        return additive
    rows = [spans_of(row) for row in visible[:, 0]]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return additive
    blocks = _blocks(known, visible.shape[-1], additive.dtype)
    saved = visible.numel() - sum(span.products for row in known for span in row)
    if saved > SPAN_COST * sum(len(block.spans) for block in blocks):
        _install()
        setattr(additive, _HINT, blocks)
    return additive


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


def _install() -> None:
    """Let this process's "sdpa" attention of transformers look for spans; without them it is what it was."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(plain, "looks_for_spans", False):
        return

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> Any:
        blocks: Sequence[Block] | None = getattr(attention_mask, _HINT, None)
        whole_rows = blocks and attention_mask.shape[-2:] == (query.shape[2], key.shape[2])
        if blocks is None or not whole_rows or options.get("position_bias") is not None:
            return plain(module, query, key, value, attention_mask, **options)
        if len(blocks) == 1:
            return _attend(plain, module, blocks[0], query, key, value, options), None
        sizes = [block.rows for block in blocks]
        parts = zip(blocks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        return torch.cat([_attend(plain, module, *part, options) for part in parts]), None

    attention.looks_for_spans = True  # type: ignore[attr-defined]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attention


def _attend(
    plain: Any, module: Any, block: Block, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
) -> Tensor:
    """`[rows, T, heads, D]` from `[rows, heads, T, D]`; zeros where there is padding."""
    lengths = [*(span.length for span in block.spans), block.padding]
    pieces = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    prompts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    outputs = []
    for span, mask, (q, k, v) in zip(block.spans, block.masks, pieces, strict=False):
        if mask is not None:
            place = span.prompt_start, span.prompt_end
            if place not in prompts:
                prompts[place] = key[:, :, slice(*place)], value[:, :, slice(*place)]
            k, v = (torch.cat(both, dim=2) for both in zip(prompts[place], (k, v), strict=True))
        outputs.append(plain(module, q, k, v, mask, **{**options, "is_causal": mask is None})[0])
    if block.padding:
        outputs.append(outputs[0].new_zeros(outputs[0].shape[0], block.padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)
