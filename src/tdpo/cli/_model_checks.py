"""What `tdpo doctor` says about the models that a recipe names, from their configurations alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._machine_checks import Check


def model_checks(names: Mapping[str, str | None], dtype: str, trust_remote_code: bool) -> Iterator[Check]:
    """Each model by the key that names it, None for a key without one; then the precision of this machine."""
    for key, name in names.items():
        if name is not None:
            yield Check(key, "ok", _described(name, trust_remote_code))
    from ..models import has_no_units_for

    if has_no_units_for(dtype):
        slow = f"this CPU has no units for {dtype}: float32 would be several times as fast"
        yield Check("model.dtype", "note", slow)


def _described(name: str, trust_remote_code: bool) -> str:
    """Architecture and size from the configuration alone; no weights are read."""
    from transformers import AutoConfig

    from ..models import check_folder, is_adapter_folder
    from ..models.loading import adapter_base
    from ..models.trust import own_code_refused

    folder = check_folder(name)
    if is_adapter_folder(folder):
        return f"{name}: an adapter of {_described(adapter_base(folder), trust_remote_code)}"
    try:
        with own_code_refused(name):
            config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{name} cannot be reached: {reason}") from None
    text = config.get_text_config()
    return (
        f"{name}: {config.model_type}, {text.num_hidden_layers} layers, hidden size {text.hidden_size}, "
        f"vocabulary {text.vocab_size}"
    )
