"""Attention span by span, for masks that know their spans (`spans.py`): the same states for fewer products.

Every span is a call of its own to the attention of transformers. A model that passes the mask on unchanged gets this;
any other computes masked attention as before, because what it makes of the mask is a plain tensor.

The table of attention functions in transformers belongs to the process, and this module replaces its entry "sdpa", once
and in `install_span_attention` alone. Nothing narrower gives the same numbers everywhere:

- A name of its own would change what else transformers does: many models ask whether the name is "sdpa".
- An entry for the time of the forward alone is missing when checkpointed layers are computed again in the backward
  pass, which would then save other tensors than the forward did.

A `BlockMask` goes to FlexAttention (`block_attention.py`). For every other mask that is no `SpanMask` the entry does
what it did before, except that `short_attention` computes short rows in half precision on a CPU. `attention_restored`
puts the old one back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .block_attention import attend_by_blocks, is_block_mask
from .short_attention import is_short, short_attention
from .spans import Block, SpanMask

REPLACED = "sdpa"


class SpanAttention:
    """The attention function `plain` of transformers, called for each span where the mask is a `SpanMask`."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
    ) -> Any:
        if is_block_mask(attention_mask):
            return attend_by_blocks(module, query, key, value, attention_mask, **options)
        if not _applies(attention_mask, query, key, options):
            return self._whole(module, query, key, value, attention_mask, **options)
        blocks = attention_mask.blocks
        if len(blocks) == 1:
            return _attend(self._whole, module, blocks[0], query, key, value, options), None
        sizes = [block.rows for block in blocks]
        parts = zip(blocks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        return torch.cat([_attend(self._whole, module, *part, options) for part in parts]), None

    def _whole(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        """Attention that is not cut."""
        attention = short_attention if is_short(query, key, options) else self.plain
        return attention(module, query, key, value, mask, **options)


def install_span_attention() -> None:
    """Let the "sdpa" attention of transformers, in this process, compute spans; a second call changes nothing."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS[REPLACED]
    if not isinstance(plain, SpanAttention):
        ALL_ATTENTION_FUNCTIONS[REPLACED] = SpanAttention(plain)


@contextmanager
def attention_restored() -> Iterator[None]:
    """Put the "sdpa" attention of transformers back at the end, as it was at the beginning."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS[REPLACED]
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[REPLACED] = before


def _applies(attention_mask: Any, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    """Whether the mask has spans, queries and keys are the whole rows that these cut, and no position bias is added."""
    return (
        isinstance(attention_mask, SpanMask)
        and attention_mask.shape[-2:] == (query.shape[2], key.shape[2])
        and options.get("position_bias") is None
    )


def _attend(
    attention: Any, module: Any, block: Block, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
) -> Tensor:
    """Attention of the rows of one block: `[rows, T, heads, D]` from `[rows, heads, T, D]`; zeros for padding."""
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
        outputs.append(attention(module, q, k, v, mask, **{**options, "is_causal": mask is None})[0])
    if block.padding:
        outputs.append(outputs[0].new_zeros(outputs[0].shape[0], block.padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)
