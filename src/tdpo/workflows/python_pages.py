"""docs/python_fields.md: every field of the trainers' configurations beside the recipe's key, made from the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_type_hints

from ..config import OnlineRecipe, PPORecipe, Recipe, RecipeFields, Section, documented_keys, markdown_table, trl_names
from ..training import OnlineTDPOConfig, PPOConfig, TDPOConfig
from ..training.arguments import REFUSED, Arguments
from ..training.offline import config as offline
from ..training.online import arguments as online_arguments
from ..training.online import config as online
from ..training.online import pairs_config as online_pairs
from .trainer_arguments import ONLINE_KEYS, PAIR_KEYS, PPO_KEYS

HEADER = """# The fields of TDPOConfig, PPOConfig and OnlineTDPOConfig

All configurations are `transformers.TrainingArguments` with fields of their own. A field that is a key of a
[recipe](recipe.md) has the key's name, range and meaning. This page lists the fields with their keys. Where they count
in other units, the meaning is the key's. What becomes of the fields of TRL's `DPOConfig` is in
[from TRL](from_trl.md).

Made from the code: `tdpo recipe --python > docs/python_fields.md`.
"""
# Keys of fields that are no single value of a recipe.
_WHOLE_SECTIONS = {"reward_weights": "rewards[].weight", "reference_update": "online.reference_update"}


def python_fields_markdown() -> str:
    """The text of docs/python_fields.md."""
    of_online = {**REFUSED, **online_arguments.REFUSED}
    others = {
        config: [*_other_fields(config, own, keys, refused)]
        for config, own, keys, refused in (
            (TDPOConfig, offline.FIELDS, PAIR_KEYS, {**REFUSED, **offline.REFUSED}),
            (PPOConfig, online.FIELDS, PPO_KEYS, of_online),
            (OnlineTDPOConfig, online_pairs.FIELDS, ONLINE_KEYS, of_online),
        )
    }
    if others[OnlineTDPOConfig] == others[PPOConfig]:
        others[OnlineTDPOConfig] = ["What is refused, and what all other fields are, is as with PPOConfig.\n"]
    return "\n".join(
        [
            HEADER,
            *_fields_with_keys(TDPOConfig, offline.FIELDS, Recipe, PAIR_KEYS),
            *others[TDPOConfig],
            *_fields_with_keys(PPOConfig, online.FIELDS, PPORecipe, PPO_KEYS),
            *others[PPOConfig],
            *_fields_with_keys(OnlineTDPOConfig, online_pairs.FIELDS, OnlineRecipe, ONLINE_KEYS),
            *others[OnlineTDPOConfig],
        ]
    )


def _fields_with_keys(config: Any, own: RecipeFields, schema: type[Section], keys: Mapping[str, str]) -> Iterator[str]:
    options = {option.name: option for option in fields(config)}
    by_default = config("unused", use_cpu=True)
    accepted = _accepted(config)
    meanings = {row.key: row.meaning for row in documented_keys(schema)}
    whole_sections = {**_WHOLE_SECTIONS, "kl": "kl" if schema is PPORecipe else "loss.kl"}
    own_names = _own_names(config, own)
    yield f"## {config.__name__}\n\nIts own fields:\n"
    yield markdown_table(
        "| field | key | default | accepts | meaning |",
        (
            (
                f"`{option}`",
                _code(own.keys.get(option, whole_sections.get(option))),
                _shown(_default(options[option], by_default)),
                own.expected(option) if option in own.keys else accepted[option],
                _help(options[option]),
            )
            for option in own_names
        ),
    )
    yield "Fields of transformers' that a recipe has a key for:\n"
    shared = [option for option in options if option in keys and option not in own_names]
    yield markdown_table(
        "| field | key | default in Python | meaning of the key |",
        (
            (f"`{option}`", _code(keys[option]), _shown(_default(options[option])), meanings[keys[option]])
            for option in shared
        ),
    )


def _other_fields(config: Any, own: RecipeFields, keys: Mapping[str, str], refused: Mapping[str, str]) -> Iterator[str]:
    options = {option.name: option for option in fields(config)}
    own_names = _own_names(config, own)
    yield "Fields that are refused:\n"
    yield markdown_table(
        "| field | why |", ((f"`{option}`", why) for option, why in refused.items() if option in options)
    )
    of_trl = [option for option in options if option in trl_names.NAMES and option not in Arguments.__annotations__]
    if of_trl:
        yield f"Names of TRL's that are understood ([what becomes of each](from_trl.md)): {_listed(of_trl)}\n"
    yield "Fields of transformers' with another default or meaning:\n"
    with_meaning = {*Arguments.__annotations__} - {*keys, *own_names, *refused}
    other = [option for option in options if option in with_meaning]
    yield markdown_table(
        "| field | default | meaning |",
        ((f"`{option}`", _shown(_default(options[option])), _help(options[option])) for option in other),
    )
    rest = [option for option in options if option not in {*own_names, *keys, *refused, *of_trl, *other}]
    yield f"The other fields mean what they mean in transformers, and no recipe has a key for them: {_listed(rest)}\n"


def _own_names(config: Any, own: RecipeFields) -> list[str]:
    """The fields that transformers' arguments have not, in their order."""
    annotations = _own_annotations(config)
    return [option.name for option in fields(config) if option.name in annotations or option.name in own.keys]


def _own_annotations(config: Any) -> set[str]:
    """The fields that a configuration adds to `Arguments`, itself or by a class that it has in common with others."""
    shared = [each for each in config.__mro__ if each not in (config, *Arguments.__mro__)]
    of_shared = {name for each in shared for name in vars(each).get("__annotations__", ())}
    return {*config.__annotations__, *(name for name in of_shared if name not in trl_names.NAMES)}


def _accepted(config: Any) -> dict[str, str]:
    """What a field accepts that is no key: the choices, or the type."""
    hints, own = get_type_hints(config), _own_annotations(config)
    return {
        name: "one of " + ", ".join(map(str, get_args(hint)))
        if all(isinstance(choice, str) for choice in get_args(hint)) and get_args(hint)
        else _type_name(next(option.type for option in fields(config) if option.name == name))
        for name, hint in hints.items()
        if name in own
    }


def _type_name(annotation: Any) -> str:
    """A type as it was written; transformers' argument parser replaces the text by the type itself."""
    return (annotation.__name__ if isinstance(annotation, type) else str(annotation)).replace("|", "or")


def _default(option: Field[Any], by_default: Any = None) -> Any:
    """The default of a field; of one that follows from others, what a configuration of defaults has."""
    if option.default_factory is not MISSING:
        return option.default_factory()
    if option.default is None and by_default is not None:
        return getattr(by_default, option.name)
    return option.default


def _shown(value: Any) -> str:
    return f"`{value!r}`"


def _code(key: str | None) -> str:
    return f"`{key}`" if key else "none"


def _help(option: Field[Any]) -> str:
    return str(option.metadata["help"]).replace("%%", "%")


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) + "."
