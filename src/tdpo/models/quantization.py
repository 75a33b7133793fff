"""Bases in four or eight bits, by bitsandbytes: how they are asked for, loaded, noted beside an adapter, and undone.

The policy is such a base with an adapter on it, and the reference is the same base with the adapter off, so the KL
starts at 0 whatever was lost by rounding. A folder of an adapter notes how its base was quantised, because peft does
not: on another base the adapter would be another model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..installation import extra_command
from ..records.json_files import write_json
from .devices import device_of
from .folder_files import read_json_object

logger = logging.getLogger(__name__)

NOTE = "base_quantization.json"
PACKAGE = "bitsandbytes"


class QuantizationChoice(Protocol):
    """What a recipe's `model.quantization` says."""

    @property
    def bits(self) -> int: ...
    @property
    def type(self) -> str | None: ...
    @property
    def nested(self) -> bool | None: ...


@dataclass(frozen=True)
class BaseQuantization:
    """How the base of an adapter was quantised when it was loaded.

    Attributes:
        settings: those of a quantization configuration of transformers', such as `BitsAndBytesConfig`.
        dtype: in which its weights were before.
    """

    settings: dict[str, Any]
    dtype: str


def quantization_config(choice: QuantizationChoice | None) -> Any | None:
    """transformers' configuration for a recipe's choice; None for None.

    Eight bits come without LLM.int8's decomposition of outliers: it takes those of a whole batch together, so a token's
    logits would depend on later tokens and on other rows.

    Raises:
        ModuleNotFoundError: bitsandbytes is missing.
    """
    if choice is None:
        return None
    require_package()
    from transformers import BitsAndBytesConfig

    if choice.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=choice.type or "nf4",
        bnb_4bit_use_double_quant=choice.nested is not False,
    )


def why_no_package() -> str | None:
    """What to do where bitsandbytes is missing, in a sentence; None where it is there."""
    if find_spec(PACKAGE) is not None:
        return None
    return f"a base in four or eight bits needs {PACKAGE}, which is not installed; {extra_command('quantization')}"


def require_package() -> None:
    """Raise ModuleNotFoundError where bitsandbytes is missing."""
    if (reason := why_no_package()) is not None:
        raise ModuleNotFoundError(reason)
    # Each call of an eight-bit layer warns of the cast that it makes.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def loading_arguments(quantization: Any | None, dtype: str, config: Any, device: str | None = None) -> dict[str, Any]:
    """What `from_pretrained` is to be given for a quantised base; {} for None.

    Weights are quantised where they arrive, and stay there: on `device`, as `device_of` takes it, or for None on the
    process's own. Four-bit layers multiply in the dtype of the other weights, unless the caller's own configuration
    says something else.
    """
    if quantization is None:
        return {}
    if getattr(quantization, "load_in_4bit", False) and quantization.bnb_4bit_compute_dtype == torch.float32:
        quantization = type(quantization).from_dict(quantization.to_dict())  # the caller's stays as it is
        quantization.bnb_4bit_compute_dtype = resolved_dtype(dtype, config)
    place = device_of(device or "auto")
    return {"quantization_config": quantization, "device_map": {"": str(place) if place.type == "cuda" else "cpu"}}


def resolved_dtype(dtype: str, config: Any) -> torch.dtype:
    """The dtype that weights are loaded in: `dtype`, or for "auto" the one that the configuration was saved with."""
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    saved = getattr(config, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.float32


def is_quantized_model(model: Any) -> bool:
    """Whether the weights of a loaded model, or of the base under its adapter, are quantised."""
    return bool(getattr(model, "is_quantized", False))


def rounds_activations(model: Any) -> bool:
    """Whether layers of the model round their inputs too, so that a last bit of these can move a result visibly."""
    return is_quantized_model(model) and bool(settings_of(model).get("load_in_8bit"))


def has_plain_weight(layer: Any) -> bool:
    """Whether `layer.weight` holds the numbers that the layer multiplies by, and no packed or scaled ones."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return False
    return not type(layer).__module__.startswith(PACKAGE) and not type(weight).__module__.startswith("torchao")


def settle_layers(model: nn.Module) -> None:
    """Make layers of bitsandbytes compute the same for a token whatever stands beside it, in evaluation and training.

    Eight-bit layers lose LLM.int8's decomposition of outliers, which a warning says (see `quantization_config`).
    On CPUs with AVX512-BF16, bitsandbytes repacks a four-bit layer at its first forward in evaluation mode: its scales
    are rounded to bfloat16 for good, and no gradient passes from then on. That is switched off.

    Raises:
        ValueError: that happened already, or four-bit layers hold plain weights.
    """
    if find_spec(PACKAGE) is None:
        return
    layers: list[Any] = [m for m in model.modules() if type(m).__module__.startswith(PACKAGE)]
    if any(getattr(getattr(layer, "state", None), "threshold", 0.0) > 0 for layer in layers):
        logger.warning(
            "LLM.int8's decomposition of outliers is switched off (llm_int8_threshold): it looks at a whole batch, so "
            "a token's logits would depend on later tokens and on other rows."
        )
    for module in layers:
        if hasattr(module, "state"):
            module.state.threshold = 0.0
        if hasattr(module, "support_avx512bf16_for_cpu"):
            state = getattr(module.weight, "quant_state", None)
            if state is None:
                raise ValueError(
                    "its weights are not quantised, though its config.json says so: remove quantization_config there"
                )
            if getattr(state, "packing_format_for_cpu", False):
                raise ValueError(
                    "the model's four-bit layers were repacked for inference on this CPU when the model was run: no "
                    "gradient passes them any more. Load it with tdpo.models.load_causal_lm(name, quantization=…), or "
                    "pass it before it is run"
                )
            module.support_avx512bf16_for_cpu = False


def in_words(settings: dict[str, Any]) -> str:
    """A quantization configuration in a few words."""
    if settings.get("load_in_4bit"):
        nested = ", nested scales" if settings.get("bnb_4bit_use_double_quant") else ""
        return f"4 bits ({settings.get('bnb_4bit_quant_type', 'fp4')}{nested})"
    if settings.get("load_in_8bit"):
        return "8 bits"
    return str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))


def choice_in_words(choice: Mapping[str, Any]) -> str:
    """A recipe's `model.quantization` in a few words, as `in_words` has them."""
    if choice["bits"] == 8:
        return "8 bits"
    return f"4 bits ({choice['type']}{', nested scales' if choice['nested'] else ''})"


def settings_of(model: Any) -> dict[str, Any]:
    """The quantization configuration of a loaded, quantised model."""
    settings = model.config.quantization_config
    found: dict[str, Any] = settings if isinstance(settings, dict) else settings.to_dict()
    return found


def base_quantization(model: Any) -> BaseQuantization | None:
    """How a loaded model was quantised while it was loaded; None where it was not, or was saved so."""
    if not is_quantized_model(model) or getattr(getattr(model, "hf_quantizer", None), "pre_quantized", True):
        return None
    return BaseQuantization(settings_of(model), str(model.dtype).removeprefix("torch."))


def write_note(model: Any, folder: str | Path) -> None:
    """Note beside an adapter that was saved in `folder` how its base is quantised; nothing where it is not."""
    quantization = base_quantization(model)
    if quantization is not None:
        write_json(Path(folder) / NOTE, asdict(quantization))


def read_note(folder: str | Path) -> BaseQuantization | None:
    """How the base of the adapter in `folder` was quantised; None where it was not, or the base itself says.

    Raises:
        ValueError: the note is broken.
    """
    file = Path(folder) / NOTE
    if not file.is_file():
        return None
    content = read_json_object(file)
    settings, dtype = content.get("settings"), content.get("dtype")
    if not isinstance(settings, dict) or not isinstance(dtype, str):
        raise ValueError(f"{file} must hold `settings` and `dtype`, as tdpo wrote them; found {sorted(content)}")
    return BaseQuantization(settings, dtype)


def as_trained(folder: str | Path, dtype: str, quantization: Any | None) -> tuple[str, Any | None]:
    """The dtype and the quantisation to load the base of the adapter in `folder` with: those of its training.

    `dtype` and `quantization` are what was asked for, "auto" and None for nothing.

    Raises:
        ModuleNotFoundError: bitsandbytes is missing.
        ValueError: another quantisation was asked for than that of the training.
    """
    note = read_note(folder)
    if note is None:
        return dtype, quantization
    if str(note.settings.get("quant_method")) == PACKAGE:
        require_package()
    if quantization is not None and in_words(quantization.to_dict()) != in_words(note.settings):
        raise ValueError(
            f"the adapter in {folder} was trained on a base in {in_words(note.settings)}, and "
            f"{in_words(quantization.to_dict())} was asked for: it would be another model. Leave the quantisation out."
        )
    from transformers.quantizers.auto import AutoQuantizationConfig

    return note.dtype if dtype == "auto" else dtype, AutoQuantizationConfig.from_dict(dict(note.settings))


def dequantized(model: Any) -> Any:
    """The peft model `model` with its quantised base turned into plain weights, which hold the same numbers.

    `model` is used up.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    name = model.active_adapter
    config, state = model.peft_config[name], get_peft_model_state_dict(model, adapter_name=name)
    base = model.unload()
    plain = PeftModel(base.dequantize(base.dtype), config, adapter_name=name)
    set_peft_model_state_dict(plain, state, adapter_name=name)
    return plain.eval()
