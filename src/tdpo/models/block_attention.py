"""Attention of shared rows on a GPU by blocks: FlexAttention leaves out the blocks of keys that a query does not see.

The blocks are read off the ranges of the rows (`batches/visibility.py`), without a mask of T × T entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..batches.visibility import BLOCK, visible

# How many forms of FlexAttention torch may compile: with and without gradients, one row and several, one block and
# several, in each dtype, first for one shape and then for all. From torch's own limit of 8 on it would compute the
# whole matrix of scores instead. A probe, a cache, a training and its evaluations came to 8 in a trial.
FORMS = 64


def block_mask(ranges: Tensor) -> Any:
    """The `BlockMask` of rows `[R, 3, T]`, T whole blocks; made on the device of the ranges, without waiting for it."""
    from torch.nn.attention.flex_attention import BlockMask

    width = ranges.shape[-1]
    assert width % BLOCK == 0, "rows with ranges are laid out in whole blocks"
    some, whole = _blocks(ranges)
    partial_count, partial_order = _listed(some & ~whole)
    whole_count, whole_order = _listed(whole)

    def mask_mod(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(ranges[row, 0, query], ranges[row, 1, query], ranges[row, 2, query], query, key)

    return BlockMask.from_kv_blocks(
        partial_count, partial_order, whole_count, whole_order, BLOCK, mask_mod, seq_lengths=(width, width)
    )


def _blocks(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Of each block of queries and block of keys, whether some and whether all of its pairs are seen: `[R, 1, B, B]`.

    A block that the own span and the prompt cover only together counts as seen in part, which is right and slower.
    """
    width = ranges.shape[-1]
    query = torch.arange(width, device=ranges.device)[:, None]
    first = torch.arange(0, width, BLOCK, device=ranges.device)
    own, start, end = ranges[..., None].unbind(1)
    last = first + BLOCK - 1
    meets_own = (own <= last) & (query >= first) & (own <= query)
    meets_prompt = (start <= last) & (end > first) & (start < end)
    in_own = (own <= first) & (query >= last)
    in_prompt = (start <= first) & (end > last)
    some, whole = meets_own | meets_prompt, in_own | in_prompt
    by_block = some.unflatten(1, (-1, BLOCK)), whole.unflatten(1, (-1, BLOCK))
    return by_block[0].any(2)[:, None], by_block[1].all(2)[:, None]


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the last dimension are chosen, and all of it with the chosen first, in order; int32."""
    count = chosen.sum(-1, dtype=torch.int32)
    order = torch.argsort(chosen.int(), dim=-1, descending=True, stable=True)
    return count, order.int().contiguous()


def is_block_mask(mask: Any) -> bool:
    """Whether a mask is one of FlexAttention's."""
    return type(mask).__name__ == "BlockMask"


def attend_by_blocks(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Attention under a `BlockMask` by transformers' FlexAttention, which compiles it once."""
    from transformers.integrations.flex_attention import flex_attention_forward

    options.pop("is_causal", None)  # the mask says it
    if torch.compiler.is_compiling():  # the whole model, with FlexAttention in it
        return flex_attention_forward(module, query, key, value, mask, **options)
    with _room_for_forms():
        return flex_attention_forward(module, query, key, value, mask, **options)


@contextmanager
def _room_for_forms() -> Iterator[None]:
    """Inside, torch compiles a function for up to `FORMS` kinds of arguments, or for more if it is set so."""
    config: Any = torch._dynamo.config
    before = config.recompile_limit
    config.recompile_limit = max(before, FORMS)
    try:
        yield
    finally:
        config.recompile_limit = before
