"""What a forward pass keeps for its backward pass, counted without a value: on the device "meta", where tensors are
names, shapes and dtypes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .hidden_states import causal_lm_of, response_hidden

logger = logging.getLogger(__name__)

OUTLINE = "tdpo_outline"  # the name of an attention that has shapes only


def saved_bytes(model: Any, rows: int, tokens: int) -> int | None:
    """The bytes that autograd keeps of a forward of the body on `rows` rows of `tokens` tokens, weights left out.

    Attention counts as a fused kernel keeps it: queries, keys, values, output and a number a row, and no matrix of
    tokens by tokens.

    Args:
        model: as it is trained, on the device "meta"; its attention is replaced for good.

    Returns None where the forward depends on values, as a router's does.
    """
    _use_outline_attention(model)
    weights = {_storage(p) for p in model.parameters()} | {_storage(b) for b in model.buffers()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor  # held, so that its place is not given to another one
        return tensor

    ids = torch.zeros((rows, tokens), dtype=torch.long, device="meta")
    every = torch.zeros(rows * tokens, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = response_hidden(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, every)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        logger.info("activations of %s cannot be counted without values: %s", type(causal_lm_of(model)).__name__, error)
        return None
    keep(hidden)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _use_outline_attention(model: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(OUTLINE, _outline_attention)
    lm = causal_lm_of(model)
    if getattr(lm.config, "_attn_implementation", None) in ("sdpa", "flash_attention_2", "flash_attention_3"):
        lm.config._attn_implementation = OUTLINE


def _outline_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused kernels keep; its values mean nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, None, None]:
        return None, None, None
