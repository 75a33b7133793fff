"""`tdpo doctor`: checks of the machine and of a recipe without training."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ._console import out, write
from ._errors import CommandError
from ._options import Debug, Overrides


def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A recipe to check without training.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    time: Annotated[
        bool,
        typer.Option("--time", help="Load the model, measure a few steps and estimate how long training takes."),
    ] = False,
    devices: Annotated[
        int,
        typer.Option(
            "--devices", min=1, help="Estimate the memory of each of so many devices that share the weights (FSDP2)."
        ),
    ] = 1,
    debug: Debug = False,
) -> None:
    """Check this machine and, if given, a recipe with its data and model, without training.

    Ends with "ready" (exit code 0) or with the list of problems (exit code 1).

    [bold]Examples[/bold]

        tdpo doctor
        tdpo doctor recipe.yaml
        tdpo doctor recipe.yaml --time
        tdpo doctor recipe.yaml --devices 8
        tdpo doctor recipe.yaml model.name=./my-model data.on_bad_rows=skip
    """
    from ._machine_checks import machine_checks
    from ._recipe_checks import recipe_checks

    if time and recipe is None:
        raise CommandError("--time estimates the training of a recipe; name one: tdpo doctor recipe.yaml --time")
    if devices > 1 and recipe is None:
        raise CommandError("--devices estimates the memory of a recipe; name one: tdpo doctor recipe.yaml --devices 8")
    checks = []
    marks = {"ok": ("✓", "green"), "note": ("!", "yellow"), "problem": ("✗", "red")}
    of_recipe = recipe_checks(recipe, overrides or [], time=time, devices=devices) if recipe else ()
    for item in chain(machine_checks(), of_recipe):
        mark, style = marks[item.state]
        out().print(f"[{style}]{mark}[/{style}] [bold]{item.name}[/bold]  ", end="")
        write(item.text.replace("\n", "\n    "))
        checks.append(item)
    problems = [item for item in checks if item.state == "problem"]
    if problems:
        names = ", ".join(item.name for item in problems)
        write(f"\n{len(problems)} problem{'s' * (len(problems) > 1)}: {names}", style="bold red")
        raise typer.Exit(1)
    to_come = any(item.name == "pairs" for item in checks)
    write("\nready, once the pairs are made" if to_come else "\nready", style="bold green")
