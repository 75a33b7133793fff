"""What every section of a recipe is made of: types of values, the base class, and errors about several keys."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from ..guards.texts import why_no_plain_text

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
# Of any key. Seeds end there; counts of rows, tokens, updates and threads never come near it.
LARGEST_INTEGER = 2**32


def key_problems(*problems: tuple[str, str]) -> PydanticCustomError:
    """An error about several keys at once, each named by its full dotted path."""
    return PydanticCustomError("key_problems", "conflicting keys", {"problems": list(problems)})


def why_no_divisor(part: int | None, key: str, whole: int | None) -> str | None:
    """Why `part` does not divide `whole`, the value of `key`; None where it does, or where one of them is None."""
    if part is None or whole is None or whole % part == 0:
        return None
    small = [divisor for divisor in range(1, math.isqrt(whole) + 1) if whole % divisor == 0]
    below = max(divisor for low in small for divisor in (low, whole // low) if divisor <= part)
    return f"{part} does not divide {key} {whole}; the nearest below is {below}"


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
        """Refuses text with control characters, since names reach terminals, files and pages, and absurd integers."""
        for part in value if isinstance(value, list) else [value]:
            reason = why_no_plain_text(part) if isinstance(part, str) else None
            if reason is not None:
                raise ValueError(reason)
            if isinstance(part, int) and not isinstance(part, bool) and part > LARGEST_INTEGER:
                raise ValueError(f"is {part:.3g}; whole numbers go up to {LARGEST_INTEGER}")
        return value
