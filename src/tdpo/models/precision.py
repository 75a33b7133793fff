"""The precision of a training: what the weights are held in, and what their products are computed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .adapters import has_adapter
from .product_speed import HALF_DTYPES, ProductSpeed, product_speed

# Weights and products of each choice but "auto".
CHOICES = {
    "float32": ("float32", "float32"),
    "bfloat16-mixed": ("float32", "bfloat16"),
    "float16-mixed": ("float32", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
}
AS_LOADED = "as the model was loaded"
ADAPTER_PARTS = ("modules_to_save.", "token_adapter.")  # of names of weights, beside the adapter's own prefix


@dataclass(frozen=True)
class Precision:
    """The dtypes of a training, by their names in torch.

    Attributes:
        weights: of the policy's weights, those of an adapter's base included, and of the reference's.
        products: of matrix products in the body.
        adapters: of the adapter's weights; None where all weights are trained.
        why: the reason for it, in a few words.
        rounds_adapters: whether an adapter is rounded to the products' dtype, in which its base is. Where not, peft
            multiplies one in float32 in float32.
    """

    weights: str
    products: str
    adapters: str | None
    why: str
    rounds_adapters: bool = False

    @property
    def is_mixed(self) -> bool:
        """Whether autocast rounds weights to the products' dtype."""
        return self.weights != self.products or self.rounds_adapters

    @property
    def choice(self) -> str:
        """The choice that gives these dtypes again, whatever is measured then."""
        pair = (self.weights, self.products)
        return next((name for name, dtypes in CHOICES.items() if dtypes == pair), "auto")

    @property
    def is_as_loaded(self) -> bool:
        """Whether weights have the dtype that they were loaded in, and products the same."""
        return self.why == AS_LOADED

    def dtypes(self) -> str:
        """The dtypes in words."""
        products = "all products" if self.rounds_adapters else "products"
        parts = {"weights": self.weights, "adapters": self.adapters, products: self.products}
        return ", ".join(f"{name} {dtype}" for name, dtype in parts.items() if dtype is not None)

    def describe(self) -> str:
        """What runs and why, in a sentence for the log."""
        return f"Precision: {self.dtypes()} ({self.why})."

    def as_dict(self) -> dict[str, Any]:
        """What is recorded of a run. `load_as` is the dtype to load its models in; "" leaves it to the recipe."""
        load_as = "" if self.is_as_loaded else self.weights
        return {**asdict(self), "choice": self.choice, "load_as": load_as, "text": f"{self.dtypes()} ({self.why})"}


def choose_precision(
    choice: str,
    saved: str,
    *,
    adapters: str | None,
    device: torch.device,
    autocast: str | None = None,
    measured: Callable[[torch.device], ProductSpeed] = product_speed,
) -> Precision:
    """What a training computes in.

    Weights that are trained as a whole are held in float32: in 16 bits, a step below about 1/500 of a weight is rounded
    away. Their products are in bfloat16 where the model was saved in 16 bits and this machine multiplies bfloat16
    clearly faster. An adapter's base is not trained, and stays in the dtype that it was loaded in. An adapter in
    float32 beside products in bfloat16 is multiplied in bfloat16 too on a GPU, where float32 takes a quarter of a step.

    Args:
        choice: "auto" or one of `CHOICES`.
        saved: the dtype of the model as it was loaded.
        adapters: the dtype of an adapter's weights; None where all weights are trained.
        device: where the model is trained.
        autocast: a dtype of products that the caller asks for without saying what weights are held in.
        measured: gives the speeds of products; called only where the choice depends on them.
    """
    weights = held_dtype(choice, saved, has_adapter=adapters is not None)
    if choice != "auto":
        products, why = CHOICES[choice][1], "as asked for"
    elif autocast is not None:
        products, why = autocast, "products as asked for"
    elif weights == saved:
        products, why = saved, AS_LOADED
    else:
        speed = measured(device)
        products = speed.dtype if speed.prefers_half else "float32"
        verdict = "clearly faster" if speed.prefers_half else "no gain"
        why = f"{speed.dtype} products are {verdict} here: {speed.describe()}"
    # Not float16: autocast in it goes with scaled losses, which only the user may ask for.
    is_raised = autocast is None and (weights, adapters, products) == ("bfloat16", "float32", "bfloat16")
    return Precision(weights, products, adapters, why, rounds_adapters=is_raised and device.type == "cuda")


def held_dtype(choice: str, saved: str, *, has_adapter: bool) -> str:
    """The dtype that weights are held in while a model that was loaded in `saved`, or its adapter, is trained."""
    if choice != "auto":
        return CHOICES[choice][0]
    return "float32" if saved in HALF_DTYPES and not has_adapter else saved


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def adapters_dtype(model: Any) -> str | None:
    """The dtype of the weights of a model's adapter; None for a model without one."""
    if not has_adapter(model):
        return None
    dtypes = [p.dtype for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    return dtype_name(dtypes[0]) if dtypes else "float32"


def loaded_dtype(model: Any) -> str:
    """The dtype that a model's weights were loaded in; of an adapter, those of its base."""
    frozen = [p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    if has_adapter(model) and frozen:
        return dtype_name(frozen[0])
    return dtype_name(model.dtype)


def hold_weights(model: nn.Module, dtype: str) -> None:
    """Hold the model's weights in `dtype`, in place, if they are in another; an adapter's weights stay as they are.

    To float32 every weight and buffer of 16 bits is raised, without loss. To 16 bits only weights are rounded, and not
    those that the architecture keeps in float32. Weights that are the same object stay so.
    """
    if loaded_dtype(model) == dtype:
        return
    target: torch.dtype = getattr(torch, dtype)
    parts_of_adapters = (getattr(model.base_model, "prefix", "lora_"), *ADAPTER_PARTS) if has_adapter(model) else ()
    kept = _kept_in_float32(model) if target != torch.float32 else ()
    for name, parameter in model.named_parameters():
        is_other = parameter.dtype in (torch.float32, torch.bfloat16, torch.float16) and parameter.dtype != target
        if is_other and not any(part in name for part in (*kept, *parts_of_adapters)):
            parameter.data = parameter.data.to(target)
    if target == torch.float32:
        for buffer in model.buffers():
            if buffer.dtype in (torch.bfloat16, torch.float16):
                buffer.data = buffer.data.to(target)


def _kept_in_float32(model: nn.Module) -> tuple[str, ...]:
    """Parts of the names of weights that transformers keeps in float32 whatever dtype a model is loaded in."""
    names: set[str] = set()
    for module in model.modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            names.update(getattr(module, attribute, None) or ())
    return tuple(names)
