"""Arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ._console import say
from ._errors import CommandError

if TYPE_CHECKING:
    from ..config import AnyRecipe, OnlineRecipe, PPORecipe, Recipe

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="YAML file of the run, or a run directory (its recipe.yaml). `tdpo recipe` lists the keys.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Dotted overrides with YAML values: seed=1 model.lora=null",
        show_default=False,
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory that `tdpo train` or `tdpo ppo` wrote.", show_default=False)
]
Trained = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Run directory, a trainer's output_dir, a checkpoint, or the folder of an adapter or a model.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Help")]


# The advice of a command for preferences that is called with a PPO recipe.
PPO_INSTEAD = {
    "train": "`tdpo ppo {path}` trains with it",
    "pairs": "training with it makes its own responses: `tdpo ppo {path}`. For pairs and `tdpo train`, start from "
    "`tdpo recipe --example sentiment_tdpo2`",
}


def read_training_recipe(path: Path, overrides: list[str] | None) -> Recipe | OnlineRecipe:
    """Read the recipe of `tdpo train`. Raises `RecipeError`, and `CommandError` for a PPO recipe."""
    from ..config import PPORecipe

    recipe = _read(path, overrides, "tdpo train recipe.yaml loss.beta=0.2")
    if isinstance(recipe, PPORecipe):
        raise _is_of_ppo(path, "train")
    return recipe


def read_preferences_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """Read the recipe of `tdpo pairs`. Raises `RecipeError`, and `CommandError` for a recipe that needs no pairs."""
    from ..config import OnlineRecipe, PPORecipe

    recipe = _read(path, overrides, "tdpo pairs recipe.yaml loss.beta=0.2")
    if isinstance(recipe, PPORecipe):
        raise _is_of_ppo(path, "pairs")
    if isinstance(recipe, OnlineRecipe):
        raise CommandError(
            f"{path} has a section online: training with it makes its own pairs: `tdpo train {path}`. To make them "
            "before training, start from `tdpo recipe --example sentiment_tdpo2`"
        )
    return recipe


def _is_of_ppo(path: Path, command: Literal["train", "pairs"]) -> CommandError:
    return CommandError(f"{path} is a PPO recipe (it has a section ppo); {PPO_INSTEAD[command].format(path=path)}")


def read_ppo_recipe(path: Path, overrides: list[str] | None) -> PPORecipe:
    """Read the recipe of `tdpo ppo`. Raises `RecipeError`, and `CommandError` for another kind of recipe."""
    from ..config import OnlineRecipe, PPORecipe

    recipe = _read(path, overrides, "tdpo ppo recipe.yaml kl.coefficient=0.1")
    if not isinstance(recipe, PPORecipe):
        online = isinstance(recipe, OnlineRecipe)
        kind = (
            "recipe on pairs of own responses (it has a section online and"
            if online
            else "recipe for preferences (it has"
        )
        raise CommandError(
            f"{path} is a {kind} no section ppo); `tdpo train {path}` trains with it. "
            "`tdpo recipe --example ppo_sentiment` prints a PPO recipe to start from"
        )
    return recipe


def _read(path: Path, overrides: list[str] | None, example: str) -> AnyRecipe:
    from ..config import RecipeError, RecipeProblem, load_recipe

    if "=" in str(path) and not path.exists():
        reason = f"is an override; the recipe file comes first: {example}"
        raise RecipeError([RecipeProblem("", reason, repr(str(path)))])
    all_overrides = list(overrides or ())
    if path.is_dir() and not any(text.startswith("run_dir=") for text in all_overrides):
        # The recipe names the folder in which the run began. It may have been moved or copied since.
        all_overrides.append(f"run_dir={json.dumps(str(path))}")
    return load_recipe(path, all_overrides, say=say)
