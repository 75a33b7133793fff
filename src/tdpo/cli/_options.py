"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config import Recipe

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
        help="Dotted overrides with YAML values: loss.beta=0.2 model.lora=null",
        show_default=False,
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory that `tdpo train` wrote.", show_default=False)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Help")]


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe that a command was given. Raises `RecipeError`."""
    from ..config import RecipeError, RecipeProblem, load_recipe

    if "=" in str(path) and not path.exists():
        reason = "is an override; the recipe file comes first: tdpo train recipe.yaml loss.beta=0.2"
        raise RecipeError([RecipeProblem("", reason, repr(str(path)))])
    return load_recipe(path, overrides or ())
