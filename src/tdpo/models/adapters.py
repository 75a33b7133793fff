"""LoRA adapters through peft: add, detect, load, merge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .added_tokens import adapter_shapes, fit_vocabulary
from .configurations import first_sentence
from .text_part import text_targets


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters; `targets` is "all-linear" or a list of module names, `alpha` the LoRA scale."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | Sequence[str] = "all-linear"


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap `model` with a fresh LoRA adapter; its weights start at zero, so policy equals reference.

    Where the model reads images too, the targets are those of its language model.

    Raises:
        ValueError: `model` has an adapter already, or none of its layers is among the targets.
    """
    if has_adapter(model):
        raise ValueError(
            "this model has an adapter already, and a second one would lie on top of it. Merge the first into its base "
            "(tdpo merge) and start from that, or train it on without asking for a new one (lora: null)."
        )
    from peft import LoraConfig, get_peft_model

    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    _check_targets(model, targets)
    targets = text_targets(model, targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, any number will do
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # peft knows nothing of recipes
        raise ValueError(f"no adapter can be put on {type(model).__name__}: {first_sentence(error)}") from error


def _check_targets(model: Any, targets: str | list[str]) -> None:
    """Raise ValueError for a target that no module of `model` answers to, by the rules of peft.

    peft itself is content with one target of a list. A text other than "all-linear" is a pattern for whole names.
    """
    if targets == "all-linear":
        return
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, str):
        lost = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
    else:
        lost = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if not lost:
        return
    leaves = {name.rpartition(".")[2] for name, module in model.named_modules() if _takes_adapter(module)}
    near = get_close_matches(lost[0], leaves, 1, 0.6)
    as_list = f"; a list of one is written [{targets}]." if isinstance(targets, str) and targets in leaves else ""
    hint = as_list or (f"; did you mean {near[0]}?" if near else ".")
    raise ValueError(
        f"LoRA targets: {type(model).__name__} has no module named {', '.join(map(repr, lost))}{hint} "
        f"Layers that take an adapter: {', '.join(sorted(leaves))}, or all-linear for all of them but the head."
    )


def _takes_adapter(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D | nn.Embedding)


def has_adapter(model: Any) -> bool:
    """Whether `model` is a peft model, whose adapter can be switched off to give the reference."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def leave_casts_to_autocast(model: nn.Module) -> None:
    """Under autocast, multiply a layer's input with its LoRA adapter as it comes; in place.

    peft raises every input to the adapter's float32, and autocast rounds it again: two copies, of which the backward
    pass keeps one for each layer, also where layers share their input. Without autocast peft does as ever, and of a
    quantised layer it leaves inputs alone by itself. Values and gradients are the same bits without the adapter's
    dropout, whose random numbers may depend on the input's dtype.
    """
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear) and not module.lora_variant:  # DoRA also computes norms of what comes
            layer: Any = module
            layer._cast_input_dtype = partial(_cast_without_autocast, module)


def _cast_without_autocast(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """peft's method of this name, which does nothing under autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return x
    raised: Tensor = type(layer)._cast_input_dtype(layer, x, dtype)
    return raised


def load_adapter(base: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """`base` with the adapter in `folder`, frozen unless `trainable`; `base` gets the tokens that the adapter added.

    Raises:
        FileNotFoundError: the folder holds no safetensors weights.
        ValueError: the weights are broken, some are missing, or they do not fit `base`.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no adapter_model.safetensors, and pickled weights (.bin) are not read because they can "
            "run code. Load the adapter with peft where you trust it and save it again with save_pretrained."
        )
    try:
        fit_vocabulary(base, folder)
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable).eval()
    except SafetensorError as error:
        raise ValueError(
            f"the weights of the adapter in {folder} are cut short or broken ({error}); save them again"
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if type(error) is ValueError and str(error).startswith("the adapter in"):
            raise
        raise ValueError(
            f"the adapter in {folder} does not fit its base {getattr(base, 'name_or_path', '')} "
            f"({type(base).__name__}): {first_sentence(error)}"
        ) from error
    if missing := _missing_weights(model, folder):
        raise ValueError(
            f"the adapter in {folder} lacks {len(missing)} weights that its adapter_config.json asks for, such as "
            f"{missing[0]}: they would start anew. Save the adapter again, whole."
        )
    return model


def _missing_weights(model: Any, folder: str | Path) -> list[str]:
    """The names of the adapter's weights that its file does not contain."""
    from peft import get_peft_model_state_dict

    return sorted(get_peft_model_state_dict(model, save_embedding_layers=False).keys() - adapter_shapes(folder).keys())


@contextmanager
def merged_adapter(model: Any) -> Iterator[bool]:
    """A context in which the LoRA adapters of `model` are part of its weights, so that it samples as fast as its base.

    Afterwards every weight is what it was before, to the last bit and as the same object, so optimizers, gradients and
    ties stay valid; also after an exception. Within the context nothing can be trained, the adapter cannot be
    switched off to give the reference, and the weights of adapted layers take twice the memory. Each sum of weights
    is computed in float32 and rounded once.

    Yields whether the model now runs without separate products for an adapter. If some adapter is not plain LoRA on a
    plain layer (DoRA, quantized or sharded weights, `modules_to_save`, another method), nothing is merged: the results
    are the same, and sampling is slower.
    """
    layers = _layers_to_merge(model)
    with ExitStack() as undo:
        for layer in layers or ():
            base = layer.get_base_layer()
            # A new parameter, and not new data: an embedding tied to an adapted head must not change with it.
            merged = nn.Parameter(_merged_weight(layer), requires_grad=False)
            undo.callback(setattr, base, "weight", base.weight)
            undo.callback(setattr, layer, "merged_adapters", layer.merged_adapters)
            base.weight = merged
            layer.merged_adapters = _adapters_in_use(layer)  # the forward of peft leaves these out
        yield layers is not None


def _layers_to_merge(model: nn.Module) -> list[Any] | None:
    """The LoRA layers that add to the model's output; None where one adapter is of a kind that cannot be merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = []
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        if not isinstance(module, BaseTunerLayer) or module.disable_adapters or module.merged:
            continue  # the forward of peft uses the base layer alone
        if not _is_plain_lora(module):
            return None
        if _adapters_in_use(module):
            layers.append(module)
    return layers


def _is_plain_lora(layer: Any) -> bool:
    """Whether the layer computes what its base layer would with the weight W + scale·BA.

    Types are compared exactly, because subclasses (quantized layers, embeddings that scale) may compute something else.
    """
    from peft.tuners.lora.layer import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if (type(layer), type(base)) not in [(Linear, nn.Linear), (Linear, Conv1D), (Embedding, nn.Embedding)]:
        return False
    if type(weight) is not nn.Parameter or weight.is_meta or not weight.is_floating_point():
        return False  # sharded, offloaded or quantized
    return getattr(base, "max_norm", None) is None and all(
        name not in layer.lora_variant and not layer.lora_bias[name] and _delta_shape(layer, name) == weight.shape
        for name in _adapters_in_use(layer)
    )


def _adapters_in_use(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A or name in layer.lora_embedding_A]


def _factors(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    """The two factors of the adapter; left times right has the layout of the base layer's weight."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return (a.T, b.T) if layer.fan_in_fan_out else (b, a)


def _delta_shape(layer: Any, name: str) -> tuple[int, int]:
    left, right = _factors(layer, name)
    return left.shape[0], right.shape[1]


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    """The base weight plus all active adapters, summed in float32 at least, in the base weight's dtype."""
    weight = layer.get_base_layer().weight
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for name in _adapters_in_use(layer):
        left, right = (factor.to(total) for factor in _factors(layer, name))
        total.addmm_(left, right, alpha=layer.scaling[name])
    return total.to(weight.dtype)
