"""Checks of the models of a recipe for `tdpo doctor`: everything that training checks and that needs no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._machine_checks import Check

if TYPE_CHECKING:
    from ..config import Model


def model_checks(names: Mapping[str, str | None], trust_remote_code: bool) -> Iterator[Check]:
    """Check each model by the key that names it (None for a key without a model)."""
    for key, name in names.items():
        if name is not None:
            if not key.startswith("rewards["):  # reward models are not language models
                _check_loads(name, trust_remote_code, trained=key == "model.name")
            yield Check(key, "ok", _describe(name, trust_remote_code))


def policy_checks(model: Model, precision: str) -> Iterator[Check]:
    """Check that the policy can be trained as `model` says, and has the vocabulary of its reference."""
    from ..models import has_adapter, outline_causal_lm
    from ..workflows.prerequisites import check_policy

    trust = model.trust_remote_code
    policy = outline_causal_lm(model.name, trust_remote_code=trust)
    if policy is not None:
        yield from _precision_checks(policy, model, precision, model.lora is not None or has_adapter(policy))
    fits: list[str] = []
    check_policy(model, fits.append)
    yield from (Check("model.lora", "ok", sentence) for sentence in fits)


def _precision_checks(policy: Any, model: Model, choice: str, adapter: bool) -> Iterator[Check]:
    """Say what training would compute in on this machine, and whether something else would be faster."""
    from ..models.devices import device_of
    from ..models.precision import choose_precision, loaded_dtype
    from ..models.product_speed import why_slow
    from ..models.quantization import choice_in_words

    loaded = loaded_dtype(policy) if model.dtype == "auto" else model.dtype
    try:
        device = device_of(model.device)
    except ValueError:  # the check of the device says it
        return
    precision = choose_precision(choice, loaded, adapters="float32" if adapter else None, device=device)
    yield Check("precision", "ok", f"{precision.dtypes()} ({precision.why})")
    if model.quantization is not None:
        bits = choice_in_words(model.quantization.model_dump())
        yield Check("model.quantization", "ok", f"the base's linear layers but the head in {bits}; so is the reference")
    if slow := why_slow(precision.products, device):
        yield Check("precision", "note", slow)


def vocabulary_size(name: str, trust_remote_code: bool) -> int | None:
    """Return how many tokens the model embeds, or None if it cannot be loaded, which another check reports."""
    from ..models import outline_causal_lm

    try:
        outline = outline_causal_lm(name, trust_remote_code=trust_remote_code)
    except (ValueError, OSError):
        return None
    return None if outline is None else int(outline.get_input_embeddings().weight.shape[0])


def _check_loads(name: str, trust_remote_code: bool, *, trained: bool) -> None:
    """Raise what loading `name` would raise, as far as that is known without the values of its weights."""
    from ..models import outline_causal_lm
    from ..models.miniature import check_architecture

    outline_causal_lm(name, trust_remote_code=trust_remote_code)
    check_architecture(name, trust_remote_code=trust_remote_code, trained=trained)


def _describe(name: str, trust_remote_code: bool) -> str:
    """Describe architecture and size from the configuration alone. No weights are read."""
    from ..models import check_folder, is_adapter_folder
    from ..models.adapter_bases import adapter_base
    from ..models.configurations import read_config, text_config
    from ..models.trust import own_code_refused

    folder = check_folder(name)
    if is_adapter_folder(folder):
        return f"{name}: an adapter of {_describe(adapter_base(folder), trust_remote_code)}"
    try:
        with own_code_refused(name):
            config: Any = read_config(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{name} cannot be reached: {reason}") from None
    text = text_config(config)
    layers, width, vocabulary = (
        getattr(text, name, "?") for name in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    return f"{name}: {config.model_type}, {layers} layers, hidden size {width}, vocabulary {vocabulary}"
