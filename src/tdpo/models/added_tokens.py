"""Adapters that were trained after tokens were added: their embedding and head have more rows than the base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .folder_files import read_json_object

PREFIX = "base_model.model."  # peft's, before the name of a module of the base model


def fit_vocabulary(base: Any, folder: str | Path) -> None:
    """Resize `base` to the vocabulary of the adapter in `folder`, if the adapter contains all new rows of both ends.

    The ends are the embedding and the output layer. Their new rows in the base itself are the mean of the old ones;
    they are used only while the adapter is switched off.

    Raises:
        ValueError: the adapter has another vocabulary than the base and does not contain all its rows.
    """
    shapes = adapter_shapes(folder)
    ends = _ends(base)
    sizes = {size for name in ends for size in _vocabularies(name, shapes)}
    base_size = base.get_input_embeddings().weight.shape[0]
    single_tokens = _single_tokens(folder)
    if single_tokens and max(single_tokens) >= base_size:
        sizes.add(max(single_tokens) + 1)
    if not sizes or sizes == {base_size}:
        return
    needed = _untied(base, ends)
    has_new_rows = len(needed) == 1 and single_tokens >= set(range(base_size, max(sizes)))
    if len(sizes) > 1 or not (has_new_rows or all(_is_whole(name, shapes) for name in needed)):
        raise ValueError(
            f"the adapter in {folder} was trained on a base with {' and '.join(map(str, sorted(sizes)))} vocabulary "
            f"entries, and its base has {base_size}; the adapter does not hold the rows that were added. Add the "
            "tokens to the base as was done for training (resize_token_embeddings), save it, and name that folder in "
            "base_model_name_or_path of adapter_config.json."
        )
    _resize(base, sizes.pop(), base_size)


@torch.no_grad()
def _resize(base: Any, size: int, old_size: int) -> None:
    base.resize_token_embeddings(size, mean_resizing=False)
    for end in (base.get_input_embeddings(), base.get_output_embeddings()):
        for part in (getattr(end, "weight", None), getattr(end, "bias", None)):
            if size > old_size and part is not None and part.shape[0] == size:
                part[old_size:] = part[:old_size].mean(dim=0)


def _ends(base: Any) -> list[str]:
    """The names of the embedding and of the output layer."""
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    return [name for name, module in base.named_modules() if any(module is end for end in ends if end is not None)]


def _untied(base: Any, ends: Sequence[str]) -> list[str]:
    """The ends whose rows the adapter must contain; if the two are tied, one of them is enough."""
    modules: list[nn.Module] = [base.get_submodule(name) for name in ends]
    tied = len({id(module.weight) for module in modules}) < len(modules)
    return list(ends[:1]) if tied else list(ends)


def _vocabularies(name: str, shapes: Mapping[str, Sequence[int]]) -> list[int]:
    """The sizes of the vocabulary that follow from the adapter's weights for the module `name`."""
    rows = []
    for key, shape in shapes.items():
        part = key.removeprefix(PREFIX).removeprefix(f"{name}.")
        if not key.startswith(f"{PREFIX}{name}.") or not shape:
            continue
        if part == "lora_embedding_A":
            rows.append(shape[1])
        elif part in (
            "weight",
            "bias",
            "modules_to_save.weight",
            "modules_to_save.bias",
            "base_layer.weight",
            "lora_B.weight",
        ):
            rows.append(shape[0])
    return rows


def _single_tokens(folder: str | Path) -> set[int]:
    """The tokens whose rows the adapter trains one by one (`trainable_token_indices`)."""
    setting = read_json_object(Path(folder) / "adapter_config.json").get("trainable_token_indices") or []
    lists = setting.values() if isinstance(setting, dict) else [setting]
    return {index for indices in lists for index in indices}


def _is_whole(name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the adapter contains the whole weight of the module `name`."""
    parts = ("weight", "modules_to_save.weight", "base_layer.weight")
    return any(f"{PREFIX}{name}.{part}" in shapes for part in parts)


def adapter_shapes(folder: str | Path) -> dict[str, list[int]]:
    """The shape of every weight of the adapter in `folder`, by name; the weights themselves are not read."""
    from safetensors import safe_open

    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as tensors:
        return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
