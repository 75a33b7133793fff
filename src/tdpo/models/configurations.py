"""Checks of a model's configuration before any weight is loaded: is it a causal language model that can run here?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def read_config(folder: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration in `folder` (or of a hub name), as transformers reads it.

    Raises:
        OSError: it cannot be reached.
        ValueError: it is broken, of an unknown kind, or code that may not run.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError:
        raise
    except Exception as error:  # validation of values raises classes of several libraries
        if "trust_remote_code" in str(error):
            raise ValueError(str(error)) from error
        file = Path(folder) / "config.json"
        raise ValueError(
            f"{file if file.is_file() else folder}: not a configuration that transformers understands: "
            f"{first_sentence(error)}"
        ) from error


def check_config(config: Any, name: str, *, trust_remote_code: bool = False) -> None:
    """Raise ValueError where no causal language model of this configuration can be loaded here.

    That is an encoder-decoder, a kind of model without a causal language model's class (an encoder, a classifier, one
    that sees but does not write), or weights quantised by a method whose library is missing.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder ({config.model_type}): its prompt goes through an encoder, and here prompt "
            "and response are one sequence. Give a decoder-only language model."
        )
    if auto_class(config, trust_remote_code=trust_remote_code) is None:
        architectures = ", ".join(getattr(config, "architectures", None) or ()) or type(config).__name__
        reads = " It reads images or sound beside text." if is_multimodal(config) else ""
        raise ValueError(
            f"{name} is no causal language model ({config.model_type}, {architectures}): transformers' "
            f"AutoModelForCausalLM has no class for it.{reads} Give a model that predicts the next token of a text."
        )
    _check_sizes(config, name)
    if is_quantized(config):
        _quantizer(config, name)


def is_quantized(config: Any) -> bool:
    """Whether weights of this configuration are stored quantised."""
    return _quantization(config) is not None


def stays_quantized(config: Any, name: str) -> bool:
    """Whether the weights stay quantised when they are loaded.

    Some kinds become plain weights on a machine that cannot multiply them.

    Raises:
        ValueError: they cannot be loaded here.
    """
    if not is_quantized(config):
        return False
    return not getattr(_quantizer(config, name).quantization_config, "dequantize", False)


def check_quantized_training(quantized: bool, has_adapter: bool) -> None:
    """Raise ValueError where quantised weights would have to be trained themselves."""
    if quantized and not has_adapter:
        raise ValueError(
            "the model's weights are quantised, and quantised weights cannot be trained. Train an adapter on top of "
            "them (model.lora in a recipe, peft_config in Python), or start from the model before it was quantised."
        )


def check_not_quantized(config: Any, name: str) -> None:
    """Raise ValueError where weights that are to be quantised are stored quantised already."""
    if is_quantized(config):
        raise ValueError(
            f"{name} holds quantised weights, which cannot be quantised again. Leave the quantisation out "
            "(model.quantization in a recipe), or give the model before it was quantised."
        )


def check_plausible(config: Any, name: str, folder: Path) -> None:
    """Raise ValueError where the configuration describes a model far larger than the folder's weights.

    This is checked before anything of that size is allocated.
    """
    from safetensors import SafetensorError, safe_open

    numbers: dict[str, int] = {}  # of the numbers in each tensor
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                numbers |= {key: math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return  # reported when the weights are read
    text = text_config(config)
    layers, *sizes = (getattr(text, key, None) for key in ("num_hidden_layers", "vocab_size", "hidden_size"))
    if numbers and isinstance(layers, int) and layers > len(numbers):
        raise ValueError(f"{name}: config.json says {layers} layers, and the weights are {len(numbers)} tensors in all")
    # A quantised weight may take a quarter of a stored number.
    vocabulary = math.prod(size for size in sizes if isinstance(size, int))
    if numbers and vocabulary > 16 * sum(numbers.values()):
        raise ValueError(
            f"{name}: config.json says vocab_size {sizes[0]} and hidden_size {sizes[1]}, and all weights together are "
            f"{sum(numbers.values())} numbers. Correct config.json, or save the model again."
        )


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    try:
        return config.get_text_config()
    except (AttributeError, ValueError):  # the configuration has no such part, or several
        return config


def first_sentence(error: Exception, limit: int = 300) -> str:
    """The first line of a library's message, cut off if it is very long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):
        return f"{lines[0]} is not a value that can be used"
    # Validation errors say where on the first line and what on the second.
    text = " ".join(line.strip() for line in lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= limit else f"{text[:limit]}…"


def auto_class(config: Any, *, trust_remote_code: bool = False) -> Any | None:
    """transformers' class that loads a model of this configuration as a language model; None where there is none.

    Where a language model lies inside one that reads images, it is loaded whole, by the class for images and text.
    """
    import transformers

    ships_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if ships_code or type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    has_text = "text_config" in getattr(config, "sub_configs", {})
    if has_text and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return None


def is_multimodal(config: Any) -> bool:
    """Whether models of this configuration read images or sound beside text."""
    return any(name in getattr(config, "sub_configs", {}) for name in ("vision_config", "audio_config"))


def _quantization(config: Any) -> Any | None:
    for part in (config, text_config(config)):
        if settings := getattr(part, "quantization_config", None):
            return settings
    return None


def _check_sizes(config: Any, name: str) -> None:
    text = text_config(config)
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}: config.json says {key} {value}, expected a positive number")


def _quantizer(config: Any, name: str) -> Any:
    """The loader of quantised weights; raises ValueError where it cannot work on this machine."""
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = _quantization(config)
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    method = getattr(method, "value", method)
    try:
        quantizer = AutoHfQuantizer.from_config(settings or {}, pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a missing library, a version, the machine, a setting: each raises another class
        raise ValueError(
            f"{name} holds weights quantised with {method or 'an unknown method'}, which cannot be loaded here: "
            f"{first_sentence(error)} Install what is missing, or give the model before it was quantised."
        ) from error
    return quantizer
