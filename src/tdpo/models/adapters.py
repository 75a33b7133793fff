"""LoRA adapters through peft: add, detect, load, merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters; `targets` is "all-linear" or a list of module names, `alpha` the LoRA scale."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | Sequence[str] = "all-linear"


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap `model` with a fresh LoRA adapter; its weights start at zero, so policy equals reference.

    Raises:
        ValueError: `model` has an adapter already.
    """
    if has_adapter(model):
        raise ValueError(
            "this model has an adapter already, and a second one would lie on top of it. Merge the first into its base "
            "(tdpo merge) and start from that, or train it on without asking for a new one (lora: null)."
        )
    from peft import LoraConfig, get_peft_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, any number will do
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def has_adapter(model: Any) -> bool:
    """Whether `model` is a peft model, whose adapter can be switched off to give the reference."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def is_adapter_folder(folder: str | Path) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def load_adapter(base: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """`base` with the adapter that lies in `folder`, frozen unless `trainable`.

    Raises:
        FileNotFoundError: the folder holds no safetensors weights.
    """
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no adapter_model.safetensors, and pickled weights (.bin) are not read because they can "
            "run code. Load the adapter with peft where you trust it and save it again with save_pretrained."
        )
    return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable).eval()


def merge_adapter(model: Any) -> Any:
    """Fold the adapter into the base weights: one plain model that needs no peft.

    Raises:
        ValueError: `model` has no adapter.
    """
    if not has_adapter(model):
        raise ValueError("this model has no adapter to merge: it is a full model already")
    return model.merge_and_unload()
