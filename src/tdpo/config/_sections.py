"""What the sections of both kinds of recipe are made of: types of values, their base class, and errors about keys."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ..guards.texts import why_no_plain_text

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "rmsprop", "adafactor", "sgd"]
# Of any key. Seeds end there; counts of rows, tokens, updates and threads never come near it.
LARGEST_INTEGER = 2**32
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "comet_ml", "clearml", "swanlab"]


def key_problems(*problems: tuple[str, str]) -> PydanticCustomError:
    """An error about several keys at once, each named by its full dotted path."""
    return PydanticCustomError("key_problems", "conflicting keys", {"problems": list(problems)})


def why_no_divisor(part: int | None, key: str, whole: int | None) -> str | None:
    """Why `part` cannot be a share of `whole`, the value of `key`; None where it can, or where one is not known."""
    if part is None or whole is None or whole % part == 0:
        return None
    small = [divisor for divisor in range(1, math.isqrt(whole) + 1) if whole % divisor == 0]
    below = max(divisor for low in small for divisor in (low, whole // low) if divisor <= part)
    return f"{part} does not divide {key} {whole}; the nearest below is {below}"


def checked_warmup(steps: float, scheduler: str | None) -> float:
    """`steps`; raises ValueError where they have no effect or count half updates."""
    if steps and scheduler == "constant":
        raise ValueError("has no effect with scheduler constant; use constant_with_warmup")
    if steps >= 1 and steps != int(steps):
        raise ValueError(f"is {steps:g}; from 1 on it counts updates and must be whole")
    return steps


def resolved_save_limit(limit: int | None, info: ValidationInfo, key: str, section: str) -> int | None:
    """How many checkpoints are kept where `key` of `section` says how often they are written."""
    if key not in info.data:
        return limit
    if info.data[key] is None:
        if limit is not None:
            raise ValueError(f"has no effect without checkpoints ({section}.{key} is null); remove it")
        return None
    return 2 if limit is None else limit


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @field_validator("*")
    @classmethod
    def _is_a_sensible_value(cls, value: Any) -> Any:
        """Text without control characters, for names reach terminals, files and pages; integers that work can count."""
        for part in value if isinstance(value, list) else [value]:
            reason = why_no_plain_text(part) if isinstance(part, str) else None
            if reason is not None:
                raise ValueError(reason)
            if isinstance(part, int) and not isinstance(part, bool) and part > LARGEST_INTEGER:
                raise ValueError(f"is {part:.3g}; whole numbers go up to {LARGEST_INTEGER}")
        return value
