"""`tdpo recipe`: the keys of a recipe, and recipes to start from."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ._console import out, say, write
from ._errors import CommandError
from ._options import Debug

if TYPE_CHECKING:
    from ..config import AnyRecipe, KeyDocumentation, PPORecipe, Recipe

Example = Literal[
    "preferences",
    "sentiment_tdpo2",
    "sentiment_dpo",
    "ppo_sentiment",
    "rloo_sentiment",
    "online_sentiment",
    "study_quick",
    "study",
    "study_two_cores",
    "study_gpu",
]


def recipe(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="A key or a section: loss, training.epochs.", show_default=False),
    ] = None,
    example: Annotated[
        Example | None,
        typer.Option("--example", help="Print a complete recipe to start from.", show_default=False),
    ] = None,
    from_trl: Annotated[
        Path | None,
        typer.Option("--from-trl", metavar="FILE", help="Print the recipe that a YAML for `trl dpo` becomes."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference as Markdown.")] = False,
    python: Annotated[
        bool,
        typer.Option("--python", help="Print the fields of the configurations in Python as Markdown."),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the keys of a recipe: default, accepted values, meaning.

    All of them, those of one section, or a single one; first those of a recipe
    for preferences, then what a PPO recipe, one on own responses and a study have of
    their own. The values of a run are in the recipe.yaml of its run directory.

    [bold]Examples[/bold]

        tdpo recipe
        tdpo recipe loss
        tdpo recipe training.warmup_steps
        tdpo recipe kl
        tdpo recipe --example preferences > recipe.yaml
        tdpo recipe --from-trl dpo.yaml > recipe.yaml
    """
    chosen = {"--example": example, "--from-trl": from_trl, "--markdown": markdown, "--python": python, "a key": key}
    given = [name for name, value in chosen.items() if value]
    if len(given) > 1:
        raise CommandError(f"{' and '.join(given)} exclude one another; give one of them")
    if from_trl is not None:
        _print_from_trl(from_trl)
        return
    if python:
        from ..workflows.python_pages import python_fields_markdown

        typer.echo(python_fields_markdown(), nl=False)
        return
    if example is not None:
        typer.echo(example_recipe(example), nl=False)
        return
    from ..config import recipe_markdown

    if markdown:
        typer.echo(recipe_markdown(), nl=False)
        return
    _print_keys(key)


def _print_from_trl(path: Path) -> None:
    """Print the recipe, and on the other stream what it leaves out, which nobody sees in a file."""
    from ..workflows.from_trl import recipe_from_trl

    converted = recipe_from_trl(path)
    typer.echo(converted.text, nl=False)
    if converted.lost:
        settings = "1 setting is" if len(converted.lost) == 1 else f"{len(converted.lost)} settings are"
        say(f"{settings} not taken over:", style="yellow")
    for sentence in converted.lost:
        say(f"  {sentence}")


def example_recipe(name: str) -> str:
    """Return the text of a recipe that comes with the package."""
    return (files("tdpo.cli") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_example(name: str, overrides: Sequence[str]) -> Recipe:
    """Load a recipe for preferences that comes with the package, with overrides."""
    from ..config import Recipe

    recipe = _load_example(name, overrides)
    assert isinstance(recipe, Recipe), f"{name} is no recipe for preferences"
    return recipe


def load_ppo_example(name: str, overrides: Sequence[str]) -> PPORecipe:
    """Load a PPO recipe that comes with the package, with overrides."""
    from ..config import PPORecipe

    recipe = _load_example(name, overrides)
    assert isinstance(recipe, PPORecipe), f"{name} is not a PPO recipe"
    return recipe


def _load_example(name: str, overrides: Sequence[str]) -> AnyRecipe:
    from ..config import load_recipe

    with as_file(files("tdpo.cli") / "recipes" / f"{name}.yaml") as path:
        return load_recipe(path, overrides)


def _print_keys(key: str | None) -> None:
    from ..config import (
        OnlineRecipe,
        PPORecipe,
        Recipe,
        Study,
        documented_keys,
        nearest_key,
        only_in_online,
        only_in_ppo,
        only_in_studies,
    )

    rows = _matching(documented_keys(), key)
    of_ppo, of_studies = _matching(only_in_ppo(), key), _matching(only_in_studies(), key)
    of_online = _matching(only_in_online(), key)
    if not (rows or of_ppo or of_online or of_studies):
        kinds = (Recipe, PPORecipe, OnlineRecipe, Study)
        candidates = [near for schema in kinds if (near := nearest_key(str(key), schema))]
        # Several kinds of recipe have keys of similar names; the one that is spelt most alike is meant.
        nearest = next(iter(get_close_matches(str(key), candidates, 1, 0.0)), None)
        raise CommandError(
            f"no key {key!r}" + (f"; did you mean {nearest}?" if nearest else "; `tdpo recipe` lists them")
        )
    _print_rows(rows)
    if of_ppo:
        write("\nIn a PPO recipe (it has a section ppo)" if rows else "In a PPO recipe", style="bold")
        _print_rows(of_ppo)
    if of_online:
        write("\nIn a recipe on pairs of own responses (it has a section online)", style="bold")
        _print_rows(of_online)
    if of_studies:
        write("\nIn a study (it has arms)", style="bold")
        _print_rows(of_studies)


def _matching(rows: list[KeyDocumentation], key: str | None) -> list[KeyDocumentation]:
    """Return the row of `key` with the keys inside it, or all rows if it is None."""
    inside = (f"{key}.", f"{key}[]")
    return [row for row in rows if key is None or row.key == key or row.key.startswith(inside)]


def _print_rows(rows: list[KeyDocumentation]) -> None:
    for row in rows:
        if row.is_section:
            write(f"\n{row.key}", style="bold")
        else:
            default = "required" if row.default == "required" else f"default {row.default}"
            out().print(f"[cyan]{row.key}[/cyan]  {default}; ", end="")
            write(row.expected)
        write(f"    {row.meaning}")
