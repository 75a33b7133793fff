"""Load a tokenizer or a causal language model by bundled name, hub name, folder, or adapter folder."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .adapters import is_adapter_folder, load_adapter
from .bundled import BUNDLED, bundled_folder

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_folder(name: str | Path) -> str:
    """Where to load `name` from: the bundled model's folder, an existing folder, or the name itself for the hub.

    Raises:
        FileNotFoundError: `name` looks like a path but no model lies there.
    """
    text = str(name)
    if text == BUNDLED:
        return str(bundled_folder())
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not is_adapter_folder(path):
            held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"{path} holds no model: expected config.json or adapter_config.json, found {held}. "
                "Give the folder that save_pretrained wrote (a run keeps its model in <run>/model)."
            )
        return str(path)
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_path:
        raise FileNotFoundError(f"no model at {text}: the folder does not exist")
    if close := get_close_matches(text.lower(), [BUNDLED], cutoff=0.75):
        raise FileNotFoundError(f"no model named {text!r}; did you mean {close[0]!r}?")
    return text


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of `name`, with a pad token (the end-of-sequence token when it has none of its own)."""
    from transformers import AutoTokenizer

    folder = check_folder(name)
    if is_adapter_folder(folder) and not (Path(folder) / "tokenizer_config.json").exists():
        folder = check_folder(adapter_base(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise _unreachable(name, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad nor an end-of-sequence token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(name: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """A causal language model in evaluation mode; a folder holding an adapter loads base and adapter.

    Args:
        name: "smollm2-135m" (bundled), a hub name or a folder.
        dtype: "auto" (the dtype it was saved in), "float32", "bfloat16" or "float16".
        trust_remote_code: whether code shipped with the model may run.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for.
        ValueError: an unknown dtype.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = check_folder(name)
    if is_adapter_folder(folder):
        base = load_causal_lm(adapter_base(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        return load_adapter(base, folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except OSError as error:
        raise _unreachable(name, error) from error
    return model.eval()


def adapter_base(folder: str | Path) -> str:
    """The base model that an adapter folder names."""
    return str(json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"])


def end_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """Every token at which generation stops: the tokenizer's end of sequence and the generation config's."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def _unreachable(name: str | Path, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().splitlines()[0]
    return FileNotFoundError(
        f"cannot load {str(name)!r}: {reason} Give a folder written by save_pretrained with safetensors weights, "
        f"a hub name that this machine can reach, or {BUNDLED!r} for the bundled model."
    )
