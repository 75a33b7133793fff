"""Liger's kernels in a model's body: norms, gated layers and rotary positions, each one pass on a GPU.

Liger also replaces the forward of the whole model, to fuse head and cross-entropy. That is left out: the head belongs
to the mathematics here (`hidden_states.py`). What Liger replaces of rotary positions, it replaces for all models of the
architecture in this process.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch

from .configurations import text_config
from .devices import describe_device
from .hidden_states import causal_lm_of, probe

# What would compute the loss that is computed here.
NOT_CALLED = ("cross_entropy", "fused_linear_cross_entropy")
# Largest relative distance of hidden states from the model's own.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def why_no_liger(config: Mapping[str, Any] | None, device: torch.device) -> str | None:
    """Why Liger's kernels cannot be used on `device` with `config` (TrainingArguments' `liger_kernel_config`); None if
    they can."""
    if asked := [name for name in NOT_CALLED if (config or {}).get(name)]:
        return f"{' and '.join(asked)} would have no effect: the loss is computed from hidden states here; leave it out"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"Liger's kernels run on a GPU, and this runs on {describe_device(device)}; leave it out"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed: pip install liger-kernel"
    return None


def apply_liger(model: Any, config: Mapping[str, Any] | None = None) -> int:
    """Replace parts of the model's body by Liger's kernels, in place; returns the number of replaced modules.

    Raises:
        ValueError: Liger has none for this architecture, or with them the model computes something else.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    lm = causal_lm_of(model)
    own = lm.__dict__.get("forward")
    before = probe(model)
    _apply_liger_kernel_to_instance(model=lm, **{**(config or {}), **dict.fromkeys(NOT_CALLED, False)})
    if lm.__dict__.get("forward") is not own:  # the whole model's: an architecture whose function takes no such names
        del lm.forward
    replaced = [module for module in lm.base_model.modules() if _is_ligers(module)]
    kind = getattr(text_config(lm.config), "model_type", type(lm).__name__)
    if not replaced:
        raise ValueError(f"Liger has no kernels for the body of {kind}, so that it would have no effect; leave it out")
    after = probe(model)
    if before is not None and after is not None:
        distance = float((after[0] - before[0]).double().norm() / before[0].double().norm().clamp_min(1e-30))
        if not distance <= TOLERANCE.get(lm.dtype, 5e-2):
            raise ValueError(
                f"with Liger's kernels the hidden states of {kind} differ by {distance:.2g} (relative) from the "
                "model's own; leave it out, and report it to Liger with the versions of torch, triton and liger-kernel"
            )
    return len(replaced)


def _is_ligers(module: torch.nn.Module) -> bool:
    """Whether calling this module calls Liger."""
    forward = module.__dict__.get("forward", type(module).forward)
    return getattr(forward, "__module__", "").startswith("liger_kernel")
