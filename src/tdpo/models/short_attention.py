"""Attention of short rows in half precision on a CPU: two products and a softmax.

torch's fused kernel computes tiles of half-precision rows one after the other, forward and backward. Rows of at most a
few hundred positions are done two to four times as fast by plain products, whose memory is then small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 256  # from 512 on the fused kernel is as fast, and needs no matrix of T × T
# Options with which transformers' attention does something else; the others it reads are understood here, or not read.
OTHERS = ("position_bias", "cache", "softcap", "output_attentions")


def is_short(query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    """Whether `short_attention` computes this, and faster: queries `[R, H, T, D]` and keys of the same positions or a
    prompt more, on a CPU in half precision, without dropout or a bias."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float16)
        and 1 < query.shape[2] <= key.shape[2] <= LONGEST
        and not options.get("dropout")
        and all(options.get(name) is None or options[name] is False for name in OTHERS)
    )


def short_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As the "sdpa" attention of transformers: `[R, T, H, D]` from queries `[R, H, T, D]` and keys and values
    `[R, H / G, S, D]`, the softmax in float32."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]  # heads of keys and values, each of which serves a group of queries
    scale = options.get("scaling")
    scale = width**-0.5 if scale is None else scale
    grouped = query.reshape(rows, shared, -1, width)
    logits = (grouped @ key.transpose(-1, -2)).view(rows, heads, length, -1).float() * scale
    causal = options.get("is_causal")
    if attention_mask is None:
        if getattr(module, "is_causal", True) if causal is None else causal:
            later = torch.ones(length, key.shape[2], dtype=torch.bool).triu_(1)
            logits = logits.masked_fill(later, float("-inf"))
    elif attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    else:
        logits = logits + attention_mask
    weights = torch.softmax(logits, dim=-1).to(value.dtype)
    mixed = weights.view(rows, shared, -1, key.shape[2]) @ value
    return mixed.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None
