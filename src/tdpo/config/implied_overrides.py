"""What an override of one key does to other keys of the file that it overrides: keys that would contradict it go.

Whoever writes `loss.name=dpo` over a recipe for TDPO2 does not mean its α. Only keys that the file has for its own
method go, and every one is said. What the overrides themselves say is never taken away: there, both are refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..methods import METHODS
from ._explain import got
from .schema import Loss

# Two keys for one thing: who gives one of them means it in place of the other.
_ALTERNATIVES = (("training.epochs", "training.max_steps"), ("data.eval", "data.eval_fraction"))
# Where held-out rows come from: whoever gives one of them does not mean the split of what the file had.
_HELD_OUT, _SPLIT = ("data.eval", "data.eval_fraction"), "data.eval_split"
_OF_LOSSES = ("beta", "alpha", "gamma", "label_smoothing")


def loss_of(values: dict[str, Any]) -> str:
    """Return the name of the loss that the values have, or the default one."""
    return str(_get(values, "loss.name") or Loss.model_fields["name"].default)


def drop_replaced(values: dict[str, Any], loss_before: str, overridden: Collection[str]) -> list[str]:
    """Take keys out of `values` that an override leaves without a meaning; return a sentence about each.

    Args:
        values: the file's keys with the overrides in them, changed in place.
        loss_before: the loss of the file.
        overridden: the dotted keys of the overrides.
    """
    sentences = []
    without_meaning = [
        *_of_other_losses(values, loss_before, overridden),
        *_beta_of_another_scale(values, loss_before, overridden),
        *_alternatives(values, overridden),
        *_split_of_others(values, overridden),
    ]
    for key, reason in without_meaning:
        section, name = key.split(".")
        sentences.append(f"{key} {got(values[section].pop(name))} of the recipe is left out: {reason}")
    return sentences


def _of_other_losses(values: dict[str, Any], before: str, overridden: Collection[str]) -> list[tuple[str, str]]:
    """The keys that the file's loss has and the one of the overrides does not have, each with the reason."""
    name = _get(values, "loss.name")
    if "loss.name" not in overridden or str(name) not in METHODS or before not in METHODS:
        return []
    return [
        (f"loss.{key}", f"loss.name={name} has none")
        for key in _OF_LOSSES
        if _is_of_the_file(values, f"loss.{key}", overridden)
        and getattr(METHODS[before], f"has_{key}")
        and not getattr(METHODS[name], f"has_{key}")
    ]


def _beta_of_another_scale(values: dict[str, Any], before: str, overridden: Collection[str]) -> list[tuple[str, str]]:
    """β of the file, where it is for sums over responses and the loss of the overrides takes means, or the reverse."""
    name = str(_get(values, "loss.name"))
    if "loss.name" not in overridden or name not in METHODS or before not in METHODS:
        return []
    one, other = METHODS[before], METHODS[name]
    if not (one.has_beta and other.has_beta) or one.is_per_token == other.is_per_token:
        return []
    if not _is_of_the_file(values, "loss.beta", overridden):
        return []
    what = "means over tokens, and sums over responses before" if other.is_per_token else "sums, and means before"
    return [("loss.beta", f"with loss.name={name} it scales {what}")]


def _alternatives(values: dict[str, Any], overridden: Collection[str]) -> list[tuple[str, str]]:
    return [
        (other, f"{key}={_get(values, key)} replaces it")
        for pair in _ALTERNATIVES
        for key, other in (pair, pair[::-1])
        if key in overridden and _get(values, key) is not None and _is_of_the_file(values, other, overridden)
    ]


def _split_of_others(values: dict[str, Any], overridden: Collection[str]) -> list[tuple[str, str]]:
    given = [key for key in _HELD_OUT if key in overridden and _get(values, key) is not None]
    if not given or not _is_of_the_file(values, _SPLIT, overridden):
        return []
    return [(_SPLIT, f"{given[0]}={_get(values, given[0])} holds out other rows")]


def _is_of_the_file(values: dict[str, Any], key: str, overridden: Collection[str]) -> bool:
    """Whether the file has a value (0 is none) for a key, and no override has set it or its whole section."""
    return bool(_get(values, key)) and not {key, key.partition(".")[0]} & set(overridden)


def _get(values: dict[str, Any], key: str) -> Any:
    section, name = key.split(".")
    inner = values.get(section)
    return inner.get(name) if isinstance(inner, dict) else None
