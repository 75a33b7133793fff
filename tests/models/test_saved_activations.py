"""Activations that are counted on shapes are those that a real forward keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model
from helpers.training_cases import lora
from tdpo.models import outline_causal_lm, response_hidden
from tdpo.models.saved_activations import saved_bytes
from tdpo.training.policy import switch_off_dropout

ROWS, TOKENS = 3, 40


def really_kept(model: Any) -> int:
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros((ROWS, TOKENS), dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        hidden = response_hidden(model, inputs, torch.arange(ROWS * TOKENS))
    keep(hidden)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("adapter", [False, True])
def test_shapes_give_what_a_forward_keeps(family: str, adapter: bool, tiny_folder: Callable[[str], Path]) -> None:
    from peft import get_peft_model

    outline, model = outline_causal_lm(tiny_folder(family)), build_model(family)
    if adapter:
        targets = ("c_attn", "c_fc") if family == "gpt2" else ("q_proj", "down_proj")
        outline, model = (get_peft_model(m, lora(*targets)) for m in (outline, model))
    for each in (outline, model):
        switch_off_dropout(each.train())
    counted = saved_bytes(outline, ROWS, TOKENS)
    # Kernels of the CPU keep a little more of attention than a fused one of a GPU.
    assert counted == pytest.approx(really_kept(model), rel=0.08)


def test_a_forward_that_depends_on_values_is_not_counted(tiny_folder: Callable[[str], Path]) -> None:
    model = outline_causal_lm(tiny_folder("llama"))

    def route(module: Any, args: Any, kwargs: Any) -> None:
        if bool(kwargs["input_ids"].sum() > 0):  # which tensors without values cannot say
            raise AssertionError

    model.base_model.register_forward_pre_hook(route, with_kwargs=True)
    assert saved_bytes(model, 1, 4) is None
