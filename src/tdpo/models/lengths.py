"""At which lengths of a sequence a model changes what it computes, read off its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Rotary embeddings whose frequencies transformers recomputes in every forward, for all rows of the batch at once, from
# the longest of them (`modeling_rope_utils.dynamic_rope_update`); "su" is what LongRoPE was called at first.
LONGROPE = ("longrope", "su")
DYNAMIC = "dynamic"

# Numbers in configurations that no length is ever compared with.
SIZES = {"hidden_size", "intermediate_size", "vocab_size", "head_dim", "n_embd", "n_head", "n_layer", "n_inner"}


def independent_length(config: Any) -> int | None:
    """Tokens up to which a sequence's hidden states do not depend on the longest row of its batch; None: at any length.

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
            named = rope.get("original_max_position_embeddings")
            limits.append(named or getattr(text, "original_max_position_embeddings", None) or positions)
    return min((int(limit) for limit in limits if limit), default=None)


def _rope_parameters(text: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of a configuration's rotary embeddings: one set, or one a kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(text, name, None)
        if isinstance(given, Mapping):
            yield given
            yield from (nested for nested in given.values() if isinstance(nested, Mapping))


def why_dependent(limit: int, longest: int) -> str:
    """A sentence for a sequence that is longer than `independent_length` says."""
    return (
        f"has {longest} tokens, and beyond {limit} this model's rotary embeddings depend on the longest row of a batch "
        "(LongRoPE or dynamic scaling): what it says of a sequence would depend on its neighbours, and policy and "
        "reference would differ without any training"
    )


def length_thresholds(config: Any) -> set[int]:
    """Every number in a configuration that the length of a sequence may be compared with: windows, chunks, positions.

    By their values, since architectures call them by many names; sizes and counts that are no lengths are left out.
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
