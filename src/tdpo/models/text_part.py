"""The text part of a model: the whole of a language model, and the language model inside one that reads images too.

Training is on text alone. What a model has for images or sound then gets no gradient, so it gets no adapter and is
frozen: it stays what it was, is shared with the reference, and is saved along.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .configurations import is_multimodal
from .hidden_states import causal_lm_of

logger = logging.getLogger(__name__)


def text_targets(model: Any, targets: str | list[str]) -> str | list[str]:
    """LoRA targets, narrowed to the text part: full names of layers where the model has other parts.

    Args:
        model: the causal language model, without an adapter.
        targets: "all-linear", a pattern for whole names, or a list of names or of their ends.
    """
    if not _has_other_parts(model):
        return targets
    from transformers.pytorch_utils import Conv1D

    head, names = model.get_output_embeddings(), dict(_text_modules(model))
    if targets == "all-linear":
        return sorted(n for n, m in names.items() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    if isinstance(targets, str):
        return sorted(name for name in names if re.fullmatch(targets, name))
    return sorted(name for name in names if any(f".{name}".endswith(f".{target}") for target in targets))


def config_in_text(model: Any, peft_config: Any) -> Any:
    """A configuration of peft whose targets are narrowed to the text part; as it was where there is no other."""
    targets = getattr(peft_config, "target_modules", None)
    if targets is None or not _has_other_parts(model):
        return peft_config
    narrowed = copy.copy(peft_config)
    narrowed.target_modules = text_targets(model, targets if isinstance(targets, str) else sorted(targets))
    return narrowed


def freeze_other_parts(model: Any) -> None:
    """Freeze what the model has for images and sound, in place.

    Raises:
        ValueError: an adapter that is to be trained lies there.
    """
    lm = causal_lm_of(model)
    if not _has_other_parts(lm):
        return
    text = {id(p) for _, module in _text_modules(lm) for p in module.parameters()}
    others = [(name, p) for name, p in model.named_parameters() if id(p) not in text]
    adapters = [name for name, p in others if p.requires_grad and "lora_" in name]
    if adapters:  # freezing them would not last: peft unfreezes an adapter each time that it is switched on
        raise ValueError(
            f"{len(adapters)} weights of the adapter lie outside the text part of {type(lm).__name__}, such as "
            f"{adapters[0]}: rows are text, so nothing would train them. Name layers of the language model as targets"
        )
    for _, parameter in others:
        parameter.requires_grad_(False)
    logger.info(
        "%s reads more than text: %.4g million weights that text does not pass are frozen.",
        type(lm).__name__,
        sum(p.numel() for _, p in others) / 1e6,
    )


def _has_other_parts(lm: Any) -> bool:
    return hasattr(lm, "get_decoder") and is_multimodal(getattr(lm, "config", None))


def _text_modules(lm: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the language model and its head, by their names in the whole model."""
    roots: Sequence[Any] = (lm.get_decoder(), lm.get_input_embeddings(), lm.get_output_embeddings())
    inside = {id(module) for root in roots if root is not None for module in root.modules()}
    return ((name, module) for name, module in lm.named_modules() if id(module) in inside)
