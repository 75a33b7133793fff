"""A small fresh model of an architecture: what `tdpo doctor` asks where training asks the model itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .configurations import read_config, text_config
from .files import adapter_base, is_adapter_folder
from .loading import check_folder
from .probing import CannotRunError, check_causal, check_whole_loss

VOCABULARY = 64
LARGEST = 60_000_000  # weights that are worth making for a question


def check_architecture(name: str | Path, *, trust_remote_code: bool = False, trained: bool = False) -> None:
    """Raise ValueError where a model of the architecture of `name` looks ahead or, to be `trained`, asks for a loss
    that is not part of training; says nothing of what is too large to be made on the spot."""
    folder = check_folder(name)
    if is_adapter_folder(folder):
        folder = check_folder(adapter_base(folder))
    small = miniature(read_config(folder, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code)
    if small is None:
        return
    try:
        check_causal(small, str(name))
    except CannotRunError:  # sizes that no longer fit one another; the model itself is asked when it is loaded
        return
    if trained:
        check_whole_loss(small)


def miniature(config: Any, *, trust_remote_code: bool = False) -> Any | None:
    """A model of fresh weights like that of `config`, with few layers and tokens; None where none can be made."""
    import torch
    from transformers import AutoModelForCausalLM

    for layers in (2, 1):
        try:
            small = _shrunk(config, layers)
            with torch.random.fork_rng(devices=[]):
                with torch.device("meta"):
                    outline = AutoModelForCausalLM.from_config(small, trust_remote_code=trust_remote_code)
                if sum(weight.numel() for weight in outline.parameters()) > LARGEST:
                    continue
                model = AutoModelForCausalLM.from_config(
                    small, dtype=torch.float32, trust_remote_code=trust_remote_code
                )
                return model.eval()
        except Exception:  # an architecture that cannot be shrunk in this way; training asks the model itself
            return None
    return None


def _shrunk(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    for part in {id(part): part for part in (config, text_config(config))}.values():
        before = getattr(part, "num_hidden_layers", None)
        if isinstance(before, int) and before > layers:
            for name, value in list(vars(part).items()):
                if isinstance(value, list) and len(value) == before:
                    setattr(part, name, value[:layers])
            part.num_hidden_layers = layers
        vocabulary = getattr(part, "vocab_size", None)
        if isinstance(vocabulary, int) and vocabulary > VOCABULARY:
            part.vocab_size = VOCABULARY
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                if getattr(part, name, None) is not None:
                    setattr(part, name, 0)
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config
