"""An adapter times a factor: a policy on the line between the reference, at 0, and the trained model, at 1."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..records.folders import staged_folder
from ..records.json_files import read_json

WEIGHTS_FILE = "adapter_model.safetensors"
LAST_FACTORS = ("lora_B", "lora_embedding_B")  # a LoRA layer adds scale·B·A·x, so a factor on B is one on the sum


@contextmanager
def scaling_adapter(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """A context with a function that multiplies what the LoRA adapters of `model` add by a factor.

    A factor counts from the adapter as it was; afterwards each weight is that again, to the last bit.

    Raises:
        ValueError: an adapter is more than plain LoRA, so that no factor leads back to the reference on a line.
    """
    weights = list(_last_factors(model))
    were = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def scale(factor: float) -> None:
        for weight, was in zip(weights, were, strict=True):
            weight.copy_(was * factor)

    try:
        yield scale
    finally:
        scale(1.0)


def _last_factors(model: nn.Module) -> Iterator[Tensor]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = False
    for name, module in model.named_modules():
        plain = not isinstance(module, AuxiliaryTrainingWrapper)
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            plain = hasattr(layer, "lora_B") and not layer.lora_variant and not any(layer.lora_bias.values())
            if plain:
                found = True
                yield from (part.weight for part in layer.lora_B.values())
                yield from layer.lora_embedding_B.values()
        if not plain:
            raise ValueError(f"{name} is trained by more than plain LoRA: no factor scales what it adds")
    if not found:
        raise ValueError("this model has no LoRA adapter that could be scaled")


def save_scaled_adapter(folder: Path, out: Path, factor: float) -> None:
    """Copy the folder of an adapter, tokenizer and all, to `out`, with the adapter times `factor`. `out` appears whole
    or not at all.

    Raises:
        ValueError: the adapter is more than plain LoRA.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if more := _beside_lora(folder):
        raise ValueError(f"the adapter in {folder} is more than plain LoRA ({more}): no factor scales what it adds")
    with staged_folder(out, out.with_name(f"{out.name}.partial")) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        scaled = {name: weight * factor if _is_last(name) else weight for name, weight in weights.items()}
        save_file(scaled, staging / WEIGHTS_FILE, metadata)


def _beside_lora(folder: Path) -> str:
    """What the configuration of an adapter asks for beside plain LoRA, by its name; empty for nothing."""
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        return str(config.get("peft_type"))
    options = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
    trained = [name for name in options if config.get(name)]
    return ", ".join([*trained, *([] if config.get("bias", "none") == "none" else ["bias"])])


def _is_last(name: str) -> bool:
    return any(part in LAST_FACTORS for part in name.split("."))
