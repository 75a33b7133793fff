"""Digests of the files of a model, before anything is loaded: enough to tell the results of two trainings apart.

Of large files only a part is hashed: the header of a safetensors file, its size, and `SLICES` short slices of every
tensor. That takes milliseconds where a hash of everything takes seconds, and it suffices because training changes every
tensor. A change of a few values within a large tensor can go unseen. Small files are hashed whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..records.names import TRAINER_FILE
from .adapter_bases import adapter_base
from .folder_files import is_adapter_folder
from .model_loading import check_folder

SLICES, SLICE_BYTES = 16, 64
WHOLE_BELOW = 1 << 22
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
OTHERS = (".json", ".jinja", ".txt", ".model", ".py")
# What a library writes anew with every saving, and what does not change the model.
VOLATILE = ("_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version")
IGNORED = ("training_args.bin", "trainer_state.json", TRAINER_FILE)


def model_digests(name: str | Path) -> dict[str, str]:
    """Digests "weights" and "configuration and tokenizer" of a model, given by name or folder.

    Those of an adapter include its base. A model of the hub that is not on this machine yet has none: {}.
    """
    folder = _folder_of(name)
    if folder is None:
        return {}
    weights, others = hashlib.sha256(), hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name not in IGNORED):
        if path.suffix in WEIGHTS:
            weights.update(path.name.encode() + _weights_digest(path))
        elif path.suffix in OTHERS:
            others.update(path.name.encode() + _small_digest(path))
    if is_adapter_folder(folder):
        base = model_digests(adapter_base(folder))
        weights.update(base.get("weights", "").encode())
        others.update(base.get("configuration and tokenizer", "").encode())
    return {"weights": weights.hexdigest(), "configuration and tokenizer": others.hexdigest()}


def _folder_of(name: str | Path) -> Path | None:
    place = check_folder(name)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        cached = try_to_load_from_cache(place, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _small_digest(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name.endswith("config.json"):
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        if isinstance(values, dict):
            lasting = {key: value for key, value in values.items() if key not in VOLATILE}
            content = json.dumps(lasting, sort_keys=True).encode()
    return hashlib.sha256(content).digest()


def _weights_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as file:
        if size <= WHOLE_BELOW:
            digest.update(file.read())
            return digest.digest()
        for start, length in _parts(file, size, path.suffix):
            for n in range(SLICES):
                file.seek(start + max(0, length - SLICE_BYTES) * n // (SLICES - 1))
                digest.update(file.read(min(SLICE_BYTES, length)))
    return digest.digest()


def _parts(file: IO[bytes], size: int, suffix: str) -> Iterator[tuple[int, int]]:
    """(start, length) of the parts that are hashed: the tensors of a safetensors file, else a thousand equal parts."""
    if suffix == ".safetensors":
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        except ValueError:
            header = {}
        if header:
            yield 0, 8 + length
            for name in sorted(header.keys() - {"__metadata__"}):
                first, last = header[name]["data_offsets"]
                yield 8 + length + first, last - first
            return
    part = max(1, size // 1000)
    yield from ((start, min(part, size - start)) for start in range(0, size, part))
