"""Load a tokenizer or a causal language model by bundled name, hub name, folder, or adapter folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .adapter_bases import adapter_base, note_revision, snapshot
from .adapters import load_adapter
from .bundled import BUNDLED, bundled_folder
from .configurations import (
    auto_class,
    check_config,
    check_not_quantized,
    check_plausible,
    first_sentence,
    is_quantized,
    read_config,
    stays_quantized,
)
from .devices import device_of, placed
from .folder_files import check_json_files, is_adapter_folder
from .probing import check_causal
from .quantization import as_trained, loading_arguments, read_note, require_package, settle_layers
from .trust import names_untrusted_code

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_folder(name: str | Path) -> str:
    """The place to load `name` from: the bundled model's folder, an existing folder, or the name itself for the hub.

    A hub name with a revision ("org/name@revision") is fetched, where it is not on this machine, and is a folder then.

    Raises:
        FileNotFoundError: `name` looks like a path, but there is no model.
        ValueError: one of its JSON files is broken.
    """
    text = str(name)
    if text == BUNDLED:
        return str(bundled_folder())
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not is_adapter_folder(path):
            names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(
                f"{path} holds no model: expected config.json or adapter_config.json, found {names}. "
                "Give the folder that save_pretrained wrote (a run keeps its model in <run>/model)."
            )
        check_json_files(path)
        return str(path)
    if (fetched := snapshot(text)) is not None:
        return fetched
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_like_path:
        raise FileNotFoundError(f"no model at {text}: the folder does not exist")
    if close := get_close_matches(text.lower(), [BUNDLED], cutoff=0.75):
        raise FileNotFoundError(f"no model named {text!r}; did you mean {close[0]!r}?")
    return text


@names_untrusted_code
def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of `name`, with a pad token: the end-of-sequence token, if it has none of its own.

    Raises:
        FileNotFoundError: there is no tokenizer, or it cannot be reached.
        ValueError: it is broken, has neither of the two tokens, or needs code that may not run.
    """
    from transformers import AutoTokenizer

    folder = check_folder(name)
    if is_adapter_folder(folder) and not (Path(folder) / "tokenizer_config.json").exists():
        with naming_the_adapter(folder):
            folder = check_folder(adapter_base(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # a broken tokenizer.json raises errors of many classes
        if "trust_remote_code" in str(error):
            raise ValueError(str(error)) from error
        if Path(folder).is_dir() and not any(Path(folder).glob("*token*")):
            raise FileNotFoundError(
                f"{folder} holds a model but no tokenizer; save the model's tokenizer there with save_pretrained, "
                "or pass a tokenizer yourself (processing_class)"
            ) from error
        if (Path(folder) / "config.json").is_file():
            read_config(folder, trust_remote_code=trust_remote_code)  # a broken one would be the cause
        raise ValueError(
            f"the tokenizer of {name} cannot be read ({first_sentence(error)}): copy its files from where the model "
            "came from, or save it again with save_pretrained"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad nor an end-of-sequence token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@names_untrusted_code
def load_causal_lm(
    name: str | Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    trainable: bool = False,
    quantization: Any | None = None,
    device: str | None = None,
) -> Any:
    """A causal language model in evaluation mode; for the folder of an adapter, its base with the adapter.

    Args:
        name: "smollm2-135m" (bundled), a hub name or a folder.
        dtype: "auto" (the dtype it was saved in), "float32", "bfloat16" or "float16".
        trust_remote_code: whether code shipped with the model may run.
        trainable: whether an adapter will be trained further; a full model always can be.
        quantization: how to quantise the model, or the base of an adapter, while it is loaded: a configuration of
            transformers' such as `BitsAndBytesConfig(load_in_4bit=True)`, or what `quantization_config` gives. None: as
            it was saved, and the base of an adapter as it was when the adapter was trained.
        device: where to put it, as `device_of` takes it; None: where transformers loads it, the CPU.

    Raises:
        FileNotFoundError: there is no model; the message says where it was looked for.
        ModuleNotFoundError: the library of the quantisation is missing.
        ValueError: an unknown dtype, code that may not run, weights that are broken, missing or of other sizes than the
            configuration says, a model that is no causal language model, or one that looks ahead. Or weights that are
            quantised already, where others were asked for.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if device is not None:
        device_of(device)  # before anything is read
    model = _load(name, dtype, trust_remote_code, trainable, quantization, outline=False, device=device)
    return placed(model, device)


@names_untrusted_code
def outline_causal_lm(name: str | Path, *, trust_remote_code: bool = False) -> Any | None:
    """The model that `load_causal_lm` would load, on the device "meta": names and shapes of weights, and no values.

    It takes no memory and little time. None for quantised weights, which have shapes of their own.

    Raises:
        FileNotFoundError, ValueError: as `load_causal_lm`, but for a model that looks ahead.
    """
    with warnings.catch_warnings():  # torch remarks on every value of an adapter that it does not take
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        return _load(name, "auto", trust_remote_code, True, None, outline=True)


@names_untrusted_code
def will_be_quantized(name: str | Path, *, trust_remote_code: bool = False) -> bool:
    """Whether the weights of the loaded model will be quantised; for an adapter, those of its base."""
    folder = check_folder(name)
    if is_adapter_folder(folder):
        noted = read_note(folder) is not None
        return noted or will_be_quantized(adapter_base(folder), trust_remote_code=trust_remote_code)
    return stays_quantized(_config(name, folder, trust_remote_code), str(name))


def _load(
    name: str | Path,
    dtype: str,
    trust_remote_code: bool,
    trainable: bool,
    quantization: Any | None,
    *,
    outline: bool,
    device: str | None = None,
) -> Any:
    folder = check_folder(name)
    if is_adapter_folder(folder):
        if not outline:
            dtype, quantization = as_trained(folder, dtype, quantization)
        with naming_the_adapter(folder):
            of_base = adapter_base(folder)
            base = _load(of_base, dtype, trust_remote_code, False, quantization, outline=outline, device=device)
        return base if base is None else load_adapter(base, folder, trainable=trainable)
    config = _config(name, folder, trust_remote_code)
    check_config(config, str(name), trust_remote_code=trust_remote_code)
    refuse_pickles(Path(folder))
    if outline and is_quantized(config):
        return None
    check_plausible(config, str(name), Path(folder))
    if quantization is not None:
        check_not_quantized(config, str(name))
        require_package()
    more = loading_arguments(quantization, dtype, config, device)
    model = _read_weights(name, folder, dtype, trust_remote_code, more, outline=outline)
    if not outline:
        settle_layers(model)
        check_causal(model, str(name))
    return model


def _read_weights(
    name: str | Path, folder: str, dtype: str, trust_remote_code: bool, more: Mapping[str, Any], *, outline: bool
) -> Any:
    from safetensors import SafetensorError

    auto: Any = auto_class(_config(name, folder, trust_remote_code), trust_remote_code=trust_remote_code)
    places = {"device_map": "meta", "ignore_mismatched_sizes": True} if outline else more
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **places,
        )
    except OSError as error:
        raise _unreachable(name, error) from error
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are cut short or broken ({error}); save them again") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # sizes that make no sense, weights of other sizes, code of the model's own
        if not outline and not is_quantized(_config(name, folder, trust_remote_code)):
            _read_weights(name, folder, dtype, trust_remote_code, {}, outline=True)  # its errors say more
        raise ValueError(f"{name} cannot be loaded as its config.json describes it: {first_sentence(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} weights that {type(model).__name__} needs, such as {missing[0]}: they "
            "would start at random. Is it a causal language model, saved whole?"
        )
    if others := sorted(info["mismatched_keys"]):
        key, saved_shape, needed_shape = others[0]
        raise ValueError(
            f"{name} holds {len(others)} weights of other sizes than its config.json says, such as {key}: "
            f"{list(saved_shape)} instead of {list(needed_shape)}. Correct config.json, or save the model again."
        )
    if unused := sorted(info["unexpected_keys"]):
        _warn_of_unused(str(name), len(unused), type(model).__name__, unused[0])
    note_revision(model, folder)
    return model.eval()


@lru_cache  # one warning, however often the model is loaded
def _warn_of_unused(name: str, count: int, kind: str, example: str) -> None:
    logger.warning(
        "%s holds %d weights that %s has no place for, such as %s: they are left out.", name, count, kind, example
    )


@names_untrusted_code
def configuration_of(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model that is not loaded; for an adapter, that of its base. Raises as `load_causal_lm`."""
    folder = check_folder(name)
    if is_adapter_folder(folder):
        with naming_the_adapter(folder):
            return configuration_of(adapter_base(folder), trust_remote_code=trust_remote_code)
    return _config(name, folder, trust_remote_code)


def _config(name: str | Path, folder: str, trust_remote_code: bool) -> Any:
    try:
        return read_config(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise _unreachable(name, error) from error


@contextmanager
def naming_the_adapter(folder: str | Path) -> Iterator[None]:
    """A context in which an error about a missing base model names the adapter that refers to it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} (It is the base model that {Path(folder) / 'adapter_config.json'} names: put it back, or set "
            "base_model_name_or_path there to where it is now.)"
        ) from error


def refuse_pickles(folder: Path, auto: str = "AutoModelForCausalLM") -> None:
    """Raise FileNotFoundError, with the remedy, if a folder's weights are pickles only: loading these can run code."""
    if any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")):
        return
    raise FileNotFoundError(
        f"{folder} holds pickled weights (.bin) and no safetensors. Pickles can run code, so they are not read. Where "
        f'you trust them, convert them once: python -c "from transformers import {auto} as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _unreachable(name: str | Path, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().splitlines()[0]
    return FileNotFoundError(
        f"cannot load {str(name)!r}: {reason} Give a folder written by save_pretrained with safetensors weights, "
        f"a hub name that this machine can reach, or {BUNDLED!r} for the bundled model."
    )
