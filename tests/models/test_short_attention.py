"""Short rows in half precision: the attention of transformers in float64, its gradients, and where it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdpo.models import short_attention
from tdpo.models.short_attention import LONGEST, is_short
from tdpo.models.span_attention import SpanAttention


class Layer:
    num_key_value_groups = 3
    is_causal = True


def tensors(length: int, keys: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 6, length, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def plain(*args: Any, **options: Any) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output: Tensor = sdpa_attention_forward(*args, **options)[0]
    return output


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(2, 12), prompt=st.integers(0, 9), kind=st.sampled_from(["none", "additive", "bool"]),
    scale=st.sampled_from([None, 0.4]), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_attention_of_transformers(length: int, prompt: int, kind: str, scale: Any, seed: int) -> None:
    """To the rounding of bfloat16, values and gradients, against float64."""
    inputs = tensors(length, length + prompt, seed=seed) if kind != "none" else tensors(length, length, seed=seed)
    keys = inputs[1].shape[2]
    visible = torch.ones(length, keys, dtype=torch.bool).tril(keys - length).expand(2, 1, -1, -1).clone()
    visible[0, :, -1, 0] = False
    mask: Any = {"none": None, "bool": visible}.get(kind)
    if kind == "additive":
        mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill(~visible, torch.finfo(torch.bfloat16).min)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    exact_mask = mask.double() if kind == "additive" else mask
    expected = plain(Layer(), *exact, exact_mask, scaling=scale)
    found = short_attention.short_attention(Layer(), *inputs, mask, scaling=scale)[0]
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.05)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        scale_of = theirs.grad.abs().max()
        assert (ours.grad.double() - theirs.grad).abs().max() <= 0.04 * scale_of + 1e-6


def test_it_is_used_where_it_is_faster_and_known_to_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("tdpo.models.span_attention.short_attention", lambda *_, **__: (called.append("short"), None))
    attention = SpanAttention(lambda *_, **__: (called.append("plain"), None))
    for query, key, options, expected in (
        (*tensors(4, 4)[:2], {}, "short"),
        (*tensors(4, 9)[:2], {"dropout": 0.0, "softcap": None, "use_cache": False, "position_ids": 1}, "short"),
        (*tensors(4, 4, torch.float32)[:2], {}, "plain"),
        (*tensors(1, 9)[:2], {}, "plain"),  # one step of sampling
        (*tensors(9, 4)[:2], {}, "plain"),
        (*tensors(LONGEST + 1, LONGEST + 1)[:2], {}, "plain"),
        (*tensors(4, 4)[:2], {"dropout": 0.1}, "plain"),
        (*tensors(4, 4)[:2], {"softcap": 30.0}, "plain"),
        (*tensors(4, 4)[:2], {"position_bias": torch.zeros(1)}, "plain"),
    ):
        called.clear()
        attention(Layer(), query, key, key, None, **options)
        assert called == [expected], options
    assert is_short(*tensors(LONGEST, LONGEST)[:2], {})


def test_a_row_that_sees_nothing_stays_finite() -> None:
    query, key, value = tensors(3, 3)
    mask = torch.full((2, 1, 3, 3), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    output = short_attention.short_attention(Layer(), query, key, value, mask)[0]
    output.float().sum().backward()
    assert output.isfinite().all() and query.grad is not None and query.grad.isfinite().all()
