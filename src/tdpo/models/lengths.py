"""The lengths of a sequence at which a model computes something else, according to its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Rotary embeddings whose frequencies transformers computes anew in every forward, for all rows of the batch, from the
# longest row (`modeling_rope_utils.dynamic_rope_update`). "su" is an early name of LongRoPE.
LONGROPE = ("longrope", "su")
DYNAMIC = "dynamic"

# Numbers of a configuration that a length is never compared with.
SIZES = {"hidden_size", "intermediate_size", "vocab_size", "head_dim", "n_embd", "n_head", "n_layer", "n_inner"}


def independent_length(config: Any) -> int | None:
    """The length in tokens up to which hidden states do not depend on the longest row of the batch; None: any length.

    Beyond that length, LongRoPE changes to its long factors for all rows at once, and dynamic NTK scaling to
    frequencies for the longest row.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    limits = []
    for rope in _rope_parameters(text):
        kind = str(rope.get("rope_type", rope.get("type", "")))
        if DYNAMIC in kind:
            limits.append(positions)
        elif kind in LONGROPE and rope.get("short_factor") != rope.get("long_factor"):
            original = rope.get("original_max_position_embeddings")
            limits.append(original or getattr(text, "original_max_position_embeddings", None) or positions)
    return min((int(limit) for limit in limits if limit), default=None)


def _rope_parameters(text: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of a configuration's rotary embeddings: one set, or one per kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        parameters = getattr(text, name, None)
        if isinstance(parameters, Mapping):
            yield parameters
            yield from (nested for nested in parameters.values() if isinstance(nested, Mapping))


def why_dependent(limit: int, longest: int) -> str:
    """The predicate of a sentence about a sequence of `longest` tokens, more than `independent_length` allows."""
    return (
        f"has {longest} tokens, and beyond {limit} this model's rotary embeddings depend on the longest row of a batch "
        "(LongRoPE or dynamic scaling): what it says of a sequence would depend on its neighbours, and policy and "
        "reference would differ without any training"
    )


def length_thresholds(config: Any) -> set[int]:
    """All numbers of a configuration that a length may be compared with: windows, chunks, positions.

    Architectures have many names for them, so every number counts whose name is not that of a size or a count.
    """
    return set(_numbers(config.get_text_config().to_dict()))


def _numbers(value: Any, name: str = "") -> Iterator[int]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, int) and value > 1 and not isinstance(value, bool) and not _is_size(name):
        yield value


def _is_size(name: str) -> bool:
    return name in SIZES or name.startswith("num_") or name.endswith("token_id")
