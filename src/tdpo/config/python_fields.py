"""The trainers' configurations in Python take defaults, ranges and help texts from the keys of a recipe.

`TDPOConfig` and `PPOConfig` are flat: a field has the name of its key, without the section. Each of the two has one
table of such fields, which serves three ends: it makes the fields, checks their values, and reads them off a recipe.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ._explain import expected, fields
from ._sections import Section

_SAME: Any = object()


class RecipeFields:
    """The fields of a configuration that are keys of a recipe.

    Args:
        schema: the kind of recipe.
        keys: the dotted key of each field.
        nullable: whether a field may be None, where that is not as in the recipe: there, null may stand for a default
            that follows from other keys.
    """

    def __init__(
        self, schema: type[Section], keys: Mapping[str, str], nullable: Mapping[str, bool] | None = None
    ) -> None:
        infos = dict(fields(schema))
        self.keys = dict(keys)
        self._infos: dict[str, FieldInfo] = {name: infos[key] for name, key in keys.items()}
        self._nullable = {name: NoneType in get_args(info.annotation) for name, info in self._infos.items()}
        self._nullable |= nullable or {}

    def field(self, name: str, default: Any = _SAME) -> Any:
        """The dataclass field `name`: default (unless another is given) and help of its key."""
        value = self._infos[name].default if default is _SAME else default
        return dataclasses.field(default=value, metadata={"help": self._help(name)})

    def problems(self, values: Any) -> Iterator[str]:
        """What is wrong with the attributes of `values` that are keys, each on its own, in the words of the recipe."""
        for name, info in self._infos.items():
            value = getattr(values, name)
            accepted = self._nullable[name] if value is None else _is_accepted(info, value)
            if not accepted:
                yield f"{name} must be {self.expected(name)}, got {value!r}"

    def values(self, recipe: Section) -> dict[str, Any]:
        """The fields with the values that the recipe has for them; without those that may not be None and are null."""
        values = {name: _value_at(recipe, key) for name, key in self.keys.items()}
        return {name: value for name, value in values.items() if value is not None or self._nullable[name]}

    def sections(self, values: Any) -> dict[str, dict[str, Any]]:
        """The attributes of `values` that are keys, by section and key as in a recipe."""
        sections: dict[str, dict[str, Any]] = {}
        for name, key in self.keys.items():
            section, _, last = key.rpartition(".")
            sections.setdefault(section, {})[last] = getattr(values, name)
        return sections

    def expected(self, name: str) -> str:
        """The values that a field accepts, in words."""
        words = re.sub(r",? or null$", "", expected(self._infos[name]))
        return f"{words} or None" if self._nullable[name] else words

    def _help(self, name: str) -> str:
        text = " ".join((self._infos[name].description or "").split())
        for field, key in self.keys.items():
            text = text.replace(f"`{key}`", f"`{field}`")
        return re.sub(r"\b[Nn]ull\b", "None", text).replace("%", "%%")  # argparse formats help texts


def _value_at(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = getattr(recipe, part)
    return recipe


def _is_accepted(info: FieldInfo, value: Any) -> bool:
    annotation: Any = info.annotation
    if annotation is str or str in get_args(annotation):  # names and folders: a Path will do as well
        return True
    try:
        _adapter(annotation, tuple(info.metadata)).validate_python(value)
    except ValidationError:
        return False
    return True


@lru_cache
def _adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    constrained: Any = Annotated[annotation, *metadata] if metadata else annotation
    return TypeAdapter(constrained, config=ConfigDict(strict=True, allow_inf_nan=False))
