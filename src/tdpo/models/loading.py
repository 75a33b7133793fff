"""Load a tokenizer or a causal language model by bundled name, hub name, folder, or adapter folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .adapters import is_adapter_folder, load_adapter
from .bundled import BUNDLED, bundled_folder
from .trust import names_untrusted_code

DTYPES = ("auto", "float32", "bfloat16", "float16")


def has_no_units_for(dtype: str) -> bool:
    """Whether models would run on a CPU that cannot multiply `dtype`, which then takes far longer than float32."""
    import torch

    if dtype not in ("bfloat16", "float16") or torch.accelerator.is_available():
        return False
    supported = torch.ops.mkldnn
    return not (supported._is_mkldnn_bf16_supported() if dtype == "bfloat16" else supported._is_mkldnn_fp16_supported())


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


@names_untrusted_code
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
    except ValueError as error:
        if not Path(folder).is_dir() or any(Path(folder).glob("*token*")):
            raise
        raise FileNotFoundError(
            f"{folder} holds a model but no tokenizer; save the model's tokenizer there with save_pretrained, "
            "or pass a tokenizer yourself (processing_class)"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad nor an end-of-sequence token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@names_untrusted_code
def load_causal_lm(
    name: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False, trainable: bool = False
) -> Any:
    """A causal language model in evaluation mode; a folder holding an adapter loads base and adapter.

    Args:
        name: "smollm2-135m" (bundled), a hub name or a folder.
        dtype: "auto" (the dtype it was saved in), "float32", "bfloat16" or "float16".
        trust_remote_code: whether code shipped with the model may run.
        trainable: whether the adapter of an adapter folder is to be trained on; a full model always can be.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for.
        ValueError: an unknown dtype, code that may not run, or weights that are broken or missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = check_folder(name)
    if is_adapter_folder(folder):
        base = load_causal_lm(adapter_base(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        return load_adapter(base, folder, trainable=trainable)
    refuse_pickles(Path(folder))
    try:
        auto: Any = AutoModelForCausalLM
        model, found = auto.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise _unreachable(name, error) from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are cut short or broken ({error}); save them again") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} weights that {type(model).__name__} needs, such as {missing[0]}: they "
            "would start at random. Is it a causal language model, saved whole?"
        )
    return model.eval()


def refuse_pickles(folder: Path, auto: str = "AutoModelForCausalLM") -> None:
    """Say what to do where a folder's weights are pickles only; loading those can run code."""
    if any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")):
        return
    raise FileNotFoundError(
        f"{folder} holds pickled weights (.bin) and no safetensors. Pickles can run code, so they are not read. Where "
        f'you trust them, convert them once: python -c "from transformers import {auto} as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def adapter_base(folder: str | Path) -> str:
    """The base model that an adapter folder names."""
    return str(json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"])


@dataclass(frozen=True)
class ModelFacts:
    """What tokenisation needs to know of a model before its weights load."""

    end_token_ids: set[int]
    positions: int | None

    def max_length(self, asked: int | None) -> int | None:
        """The length limit asked for, no longer than the positions that the model has."""
        if self.positions is None:
            return asked
        return self.positions if asked is None else min(asked, self.positions)


@names_untrusted_code
def model_facts(name: str | Path, tokenizer: Any, *, trust_remote_code: bool = False) -> ModelFacts:
    """The facts of a model that is not loaded, from its configuration files.

    Raises:
        FileNotFoundError: as `load_causal_lm`.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = check_folder(name)
    if is_adapter_folder(folder):
        return model_facts(adapter_base(folder), tokenizer, trust_remote_code=trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise _unreachable(name, error) from error
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:  # not every model ships one
        generation = None
    return _facts(config, generation, tokenizer)


def facts_of(model: Any, tokenizer: Any) -> ModelFacts:
    """The facts of a loaded model."""
    return _facts(model.config, getattr(model, "generation_config", None), tokenizer)


def _facts(config: Any, generation: Any, tokenizer: Any) -> ModelFacts:
    named = getattr(generation, "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    ends = {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
    return ModelFacts(ends, getattr(config.get_text_config(), "max_position_embeddings", None))


def _unreachable(name: str | Path, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().splitlines()[0]
    return FileNotFoundError(
        f"cannot load {str(name)!r}: {reason} Give a folder written by save_pretrained with safetensors weights, "
        f"a hub name that this machine can reach, or {BUNDLED!r} for the bundled model."
    )
