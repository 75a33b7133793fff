"""Tokens from logits and uniform numbers, by the inverse of the cumulative distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import SamplingSettings


def draw_tokens(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> Tensor:
    """Tokens `[R]` from logits `[R, V]`, whose maximum is finite, and uniform numbers `[R]` in [0, 1) (float64).

    Temperature, then top-k, then top-p, as in transformers; tokens tied with the last that is kept are kept too.
    """
    logits = logits.float()
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)).div_(settings.temperature)
    if 0 < settings.top_k < logits.shape[-1]:
        weakest = logits.topk(settings.top_k).values[:, -1:]
        logits.masked_fill_(logits < weakest, -torch.inf)
    weights = logits.exp_()
    if settings.top_p < 1:
        weights = _nucleus(weights, settings.top_p)
    return inverse_cdf(weights, uniforms)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The weights `[R, V]`; all but the smallest set that holds a share `top_p` of their sum are put to zero."""
    needed = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(512, weights.shape[-1])
    while True:  # the few largest are found much faster than a vocabulary is sorted
        largest = weights.topk(size).values.double()
        upto = largest.cumsum(-1)
        if size == weights.shape[-1] or bool((upto[:, -1:] >= needed).all()):
            break
        size = min(8 * size, weights.shape[-1])
    in_nucleus = upto - largest < needed
    weakest = largest.where(in_nucleus, torch.inf).amin(-1, keepdim=True)
    return weights.masked_fill(weights < weakest, 0.0)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Indices `[R]`: the first at which the running sum of `weights` `[R, V]` (non-negative, any scale, some positive)
    exceeds `uniforms` `[R]` times the row's sum. An index of weight zero is never returned, nor one past the end.

    The sum runs in float64: in float32, over 50,000 entries, it loses tokens less likely than about 1e-7.
    """
    upto = weights.cumsum(-1, dtype=torch.float64)
    total = upto[:, -1]
    # `right=True` finds the first entry *above* the target, which an entry of weight zero never is; the product of the
    # largest uniform number and the total may round to the total, above which there is nothing.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(upto, target[:, None], right=True)[:, 0]
