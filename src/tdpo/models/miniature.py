"""A small fresh model of an architecture, which `tdpo doctor` probes where training probes the model itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .adapter_bases import adapter_base
from .configurations import auto_class, read_config, text_config
from .folder_files import is_adapter_folder
from .model_loading import check_folder
from .probing import CannotRunError, check_causal, check_whole_loss

VOCABULARY = 64
LARGEST = 60_000_000  # weights of a model that is still made for a probe


def check_architecture(name: str | Path, *, trust_remote_code: bool = False, trained: bool = False) -> None:
    """Raise ValueError where models of this architecture cannot be used, as `check_causal` on a small one says.

    If the model is to be `trained`, `check_whole_loss` is asked too. An architecture that cannot be made small enough
    passes.
    """
    folder = check_folder(name)
    if is_adapter_folder(folder):
        folder = check_folder(adapter_base(folder))
    small = miniature(read_config(folder, trust_remote_code=trust_remote_code), trust_remote_code=trust_remote_code)
    if small is None:
        return
    try:
        check_causal(small, str(name))
    except CannotRunError:  # its smaller sizes do not fit one another; the model itself is probed when it is loaded
        return
    if trained:
        check_whole_loss(small)


def miniature(config: Any, *, trust_remote_code: bool = False) -> Any | None:
    """A model of `config` with fresh weights, few layers and a small vocabulary; None where none can be made."""
    import torch

    auto: Any = auto_class(config, trust_remote_code=trust_remote_code)
    for layers in (2, 1):
        try:
            small = _shrunk(config, layers)
            with torch.random.fork_rng(devices=[]):
                with torch.device("meta"):
                    outline = auto.from_config(small, trust_remote_code=trust_remote_code)
                if sum(weight.numel() for weight in outline.parameters()) > LARGEST:
                    continue
                model = auto.from_config(small, dtype=torch.float32, trust_remote_code=trust_remote_code)
                return model.eval()
        except Exception:  # an architecture that cannot be shrunk in this way; training probes the model itself
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
