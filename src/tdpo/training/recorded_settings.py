"""What a trainer in Python knows of its policy, reference, data and optimiser, by section and key as in a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..models import BUNDLED, Reference, cache_folder, has_adapter, is_adapter_folder
from ..models.quantization import in_words, is_quantized_model, settings_of

IN_MEMORY = "a model that was passed in memory"


def policy_settings(given: Any, policy: Any, ref_model: Any) -> dict[str, Any]:
    """The section `model` of a trainer's settings.

    Args:
        given: the `model` that the trainer got, by name or loaded.
        policy: what became of it.
        ref_model: the one that the trainer got, or None.
    """
    second = None if ref_model is None else lasting_name(ref_model) or IN_MEMORY
    return {
        "name": lasting_name(given),
        "dtype": str(policy.dtype).removeprefix("torch."),
        "reference": second,
        "lora": _adapter_settings(policy) if has_adapter(policy) else None,
        "quantization": in_words(settings_of(policy)) if is_quantized_model(policy) else None,
    }


def reference_facts(given: Any, policy: Any, start: Reference, ref_model: Any) -> dict[str, Any]:
    """How the reference can be had again: `kind`, and `name` of the model to load, None where nobody knows it.

    The kind "adapter-off" needs no other model than the adapter's base. With the kind "start" a trained adapter is
    compared with what it was before training, which is not its base alone.
    """
    if ref_model is not None:
        return {"kind": "second model", "name": lasting_name(ref_model)}
    if start.kind == "adapter-off":
        return {"kind": "adapter-off", "name": _base_name(policy)}
    is_saved_adapter = isinstance(given, str | Path) and is_adapter_folder(Path(given).expanduser())
    # Of an adapter in memory nobody knows where it was read, or whether it was; its name is that of its base.
    name = lasting_name(given) if is_saved_adapter or not has_adapter(policy) else None
    return {"kind": "start", "name": name}


def lasting_name(model: Any) -> str | None:
    """A name under which a model is found again from any folder: absolute, the hub's, the bundled one, or None."""
    name = str(model) if isinstance(model, str | Path) else str(getattr(model, "name_or_path", "") or "")
    if not name or name == BUNDLED:
        return name or None
    path = Path(name).expanduser()
    if not path.is_dir():
        return name
    if path.resolve().is_relative_to((cache_folder() / "models").resolve()) and path.name.startswith(BUNDLED):
        return BUNDLED
    return str(path.resolve())


def _base_name(policy: Any) -> str | None:
    return lasting_name(policy.get_base_model())


def _adapter_settings(policy: Any) -> dict[str, Any] | str:
    config = policy.active_peft_config
    if not hasattr(config, "lora_alpha"):
        return f"adapter of {type(config).__name__}"
    targets = config.target_modules  # peft has written every module's full name for "all-linear"
    return {
        "rank": config.r,
        "alpha": float(config.lora_alpha),
        "dropout": config.lora_dropout,
        "targets": sorted({name.rpartition(".")[2] for name in targets})
        if isinstance(targets, set | list | tuple)
        else str(targets),
    }


def optimizing_settings(args: Any) -> dict[str, Any]:
    """What the sections `training` and `ppo` have in common, from transformers' arguments."""
    return {
        "learning_rate": args.learning_rate,
        "scheduler": _text(args.lr_scheduler_type),
        "warmup_steps": args.warmup_steps,
        "optimizer": _text(args.optim),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "gradient_checkpointing": args.gradient_checkpointing,
        "micro_batch_size": args.per_device_train_batch_size,
    }


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def batch_size(args: Any) -> int:
    """Rows of an update, over all processes."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def described_source(dataset: Any) -> str:
    """Where rows came from, as far as they tell: a file or a hub's name, or that they were passed in memory."""
    if isinstance(source := getattr(dataset, "source", None), str):  # Preferences
        return source
    info = getattr(dataset, "info", None)
    if name := getattr(info, "dataset_name", None):
        split = getattr(dataset, "split", None)
        return f"datasets.Dataset {name}" + (f", {split}" if split else "")
    return f"a {type(dataset).__name__} in memory"


def file_of(dataset: Any) -> str | None:
    """The absolute path of the file that rows were read from, where that is known."""
    source = getattr(dataset, "source", None)
    path = Path(source).expanduser() if isinstance(source, str) else None
    return str(path.resolve()) if path is not None and path.is_file() else None
