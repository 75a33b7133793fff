"""Which names of models in a recipe were folders when the run began, so that no other model is taken for them later.

A recipe may name a folder by a relative path. Read from elsewhere it would be a name of the hub, where somebody else's
model may have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import AnyRecipe, PPORecipe


def model_folders(recipe: AnyRecipe) -> dict[str, str]:
    """The absolute path of each model of the recipe that is a folder, by the recipe's key."""
    folders = {key: Path(name).expanduser() for key, name in _names(recipe).items()}
    return {key: str(path.absolute()) for key, path in folders.items() if path.is_dir()}


def with_models_found(recipe: AnyRecipe, recorded: Mapping[str, str], recipe_file: Path) -> AnyRecipe:
    """The recipe with the recorded folder in the place of each name that leads to no folder from here.

    Raises:
        FileNotFoundError: neither is there; the message says where both were looked for.
    """
    changes: dict[str, str] = {}
    for key, name in _names(recipe).items():
        folder = recorded.get(key)
        if folder is None or Path(name).expanduser().is_dir():
            continue
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"{key} {name} was the folder {folder} when the run began; there is none there now, nor at "
                f"{Path(name).expanduser().absolute()}. Put it back, or set {key} in {recipe_file} to where it is."
            )
        changes[key] = folder
    return _with_names(recipe, changes) if changes else recipe


def _names(recipe: AnyRecipe) -> dict[str, str]:
    names: dict[str, Any] = {"model.name": recipe.model.name, "model.reference": recipe.model.reference}
    if isinstance(recipe, PPORecipe):
        names["ppo.value_model"] = recipe.ppo.value_model
    return {key: name for key, name in names.items() if isinstance(name, str)}


def _with_names(recipe: AnyRecipe, names: Mapping[str, str]) -> AnyRecipe:
    sections: dict[str, Any] = {}
    for key, name in names.items():
        section, _, field = key.partition(".")
        before = sections.get(section, getattr(recipe, section))
        sections[section] = before.model_copy(update={field: name})
    return recipe.model_copy(update=sections)
