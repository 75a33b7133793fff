"""What of a model is quantised, or will be, and what it takes: for the log, and for an estimate before weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .folder_files import is_adapter_folder
from .hidden_states import causal_lm_of
from .quantization import QuantizationChoice, has_plain_weight, in_words, read_note, settings_of


def describe_quantization(model: Any) -> str:
    """The quantised base of a loaded model in words: bits, kind, number of layers, and what the weights take."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and not has_plain_weight(m)]
    layers = [m for m in layers if not hasattr(m, "base_layer")]
    weights = [tensor for m in layers for tensor in m.state_dict().values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    numbers = sum(m.in_features * m.out_features for m in layers)
    return (
        f"{in_words(settings_of(model))}: {numbers / 1e6:.4g} million weights of {len(layers)} layers in "
        f"{size / 1e6:.4g} MB ({8 * size / max(numbers, 1):.2f} bits each)"
    )


def why_little_is_quantized(model: Any) -> str | None:
    """A sentence where most weights beside embedding and head stayed as they were; None where most are quantised.

    bitsandbytes quantises linear layers. Experts that transformers keeps as one tensor are none.
    """
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    plain = [(name, p) for name, p in model.named_parameters() if p.dim() > 1 and p.is_floating_point()]
    plain = [(name, p) for name, p in plain if id(p) not in ends]
    left = sum(p.numel() for _, p in plain)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and not has_plain_weight(m)]
    done = sum(m.in_features * m.out_features for m in layers)
    if left <= done:
        return None
    largest = max(plain, key=lambda entry: entry[1].numel())[0]
    return (
        f"only {done / 1e6:.4g} million weights are quantised, and {left / 1e6:.4g} million stay as they were, such as "
        f"{largest}: bitsandbytes quantises linear layers, and experts of a mixture are one tensor"
    )


def bits_of_base(name: str, choice: QuantizationChoice | None) -> float | None:
    """The bits of a weight in the layers that are quantised when the model `name` loads as a recipe's choice says; for
    an adapter on a quantised base, as it was trained. None where none is.

    Scales are included: of four bits a float32 for 64 weights, or where these are nested 8 bits for 64 and a float32
    for 256 of them. Of eight bits a float32 for a row is not.
    """
    folder = Path(name).expanduser()
    note = read_note(folder) if is_adapter_folder(folder) else None
    if note is not None:
        four, nested = note.settings.get("load_in_4bit"), note.settings.get("bnb_4bit_use_double_quant")
    elif choice is not None:
        four, nested = choice.bits == 4, choice.nested is not False
    else:
        return None
    return 8.0 if not four else 4 + (8 + 32 / 256) / 64 if nested else 4 + 32 / 64


def layers_to_quantize(model: nn.Module) -> list[Tensor]:
    """The weights of a model that bitsandbytes will quantise when it is loaded: of its linear layers but the head, and
    none of an adapter."""
    lm: Any = causal_lm_of(model)
    ends = {id(p) for e in (lm.get_input_embeddings(), lm.get_output_embeddings()) if e is not None
            for p in e.parameters()}  # fmt: skip
    linear = (module.weight for module in model.modules() if isinstance(module, nn.Linear))
    return [weight for weight in linear if not weight.requires_grad and id(weight) not in ends]
