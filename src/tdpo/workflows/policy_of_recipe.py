"""The policy that a recipe names."""

from __future__ import annotations

from typing import Any

from ..config import Model
from ..models import LoraSettings, add_lora, load_causal_lm, quantization_config


def load_policy(model: Model) -> Any:
    """The model that a recipe's section `model` names, with a fresh adapter where it asks for one."""
    policy = load_causal_lm(
        model.name,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        trainable=model.lora is None,
        quantization=quantization_config(model.quantization),
        device=model.device,
    )
    if model.lora is None:
        return policy
    return add_lora(policy, LoraSettings(model.lora.rank, model.lora.alpha, model.lora.dropout, model.lora.targets))
