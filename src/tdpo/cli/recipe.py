"""`tdpo recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ._console import out, write
from ._errors import CommandError
from ._options import Debug

if TYPE_CHECKING:
    from ..config import Recipe

Example = Literal["preferences", "sentiment_tdpo2", "sentiment_dpo"]


def recipe(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="A key or a section: loss, training.epochs.", show_default=False),
    ] = None,
    example: Annotated[
        Example | None,
        typer.Option("--example", help="Print a complete recipe to start from.", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference as Markdown.")] = False,
    debug: Debug = False,
) -> None:
    """List the keys of a recipe: default, accepted values, meaning.

    All of them, those of one section, or a single one. The values of a run are
    in the recipe.yaml of its run directory.

    [bold]Examples[/bold]

        tdpo recipe
        tdpo recipe loss
        tdpo recipe training.warmup_steps
        tdpo recipe --example preferences > recipe.yaml
    """
    if example is not None:
        typer.echo(example_recipe(example), nl=False)
        return
    from ..config import recipe_markdown

    if markdown:
        typer.echo(recipe_markdown(), nl=False)
        return
    _print_keys(key)


def example_recipe(name: str) -> str:
    """The text of a recipe that comes with the package."""
    return (files("tdpo.cli") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_example(name: str, overrides: Sequence[str]) -> Recipe:
    """A recipe that comes with the package, with overrides."""
    from ..config import load_recipe

    with as_file(files("tdpo.cli") / "recipes" / f"{name}.yaml") as path:
        return load_recipe(path, overrides)


def _print_keys(wanted: str | None) -> None:
    from ..config import nearest_key, recipe_reference

    rows = [
        row for row in recipe_reference() if wanted is None or row.key == wanted or row.key.startswith(f"{wanted}.")
    ]
    if not rows:
        meant = nearest_key(str(wanted))
        raise CommandError(
            f"no key {wanted!r}" + (f"; did you mean {meant}?" if meant else "; `tdpo recipe` lists them")
        )
    for row in rows:
        if row.is_section:
            write(f"\n{row.key}", style="bold")
        else:
            default = "required" if row.default == "required" else f"default {row.default}"
            out().print(f"[cyan]{row.key}[/cyan]  {default}; ", end="")
            write(row.expected)
        write(f"    {row.meaning}")
