"""The precision of a run: chosen when it begins, recorded in its directory, and kept when it is resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from ..config import Precision as Choice
from ..models import has_adapter
from ..models.precision import CHOICES, Precision, loaded_dtype
from ..runs import RunDirectory


def precision_of_run(run: RunDirectory, choice: Choice, policy: Any, *, is_resumed: bool) -> Choice:
    """The choice that the trainer is given: the recipe's, or for a resumed run the one that it recorded.

    A new measurement could choose otherwise. A run of a version that recorded nothing trained its weights in the dtype
    that they were loaded in, and goes on so.
    """
    if choice != "auto" or not is_resumed:
        return choice
    recorded = run.precision()
    if recorded is not None:
        return cast(Choice, recorded.get("choice", "auto"))
    dtype = loaded_dtype(policy)
    return cast(Choice, dtype) if dtype in CHOICES and not has_adapter(policy) else choice


def settle_record(run: RunDirectory, precision: Precision, *, is_resumed: bool) -> Precision:
    """What runs, with the reason for it; it is written into the run's environment.json, if that lacks it."""
    recorded = run.precision() if is_resumed else None
    if recorded is not None and recorded.get("choice") == precision.choice:
        return replace(precision, why="as the run began")
    run.note_precision(precision.as_dict())
    return precision
