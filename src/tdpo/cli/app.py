"""The Typer application. Every command has a module of its own, and all of them are fast to import."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..guards.texts import printable
from ._errors import guarded
from .cache import HELP as CACHE_HELP
from .cache import clear, fetch, list_caches
from .compare import compare
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .exact import exact
from .explain import explain
from .generate import generate
from .merge import merge
from .pairs import pairs
from .ppo import ppo
from .push import push
from .recipe import recipe
from .report import report
from .scale import scale
from .train import train


class Commands(TyperGroup):
    """The group of all commands. It escapes control characters in Typer's own messages, which quote arguments."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _printable_refusals():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _printable_refusals():
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_without_a_type(super().get_params(ctx))


@contextlib.contextmanager
def _printable_refusals() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for name in ("message", "option_name", "param_hint"):
            if isinstance(value := getattr(error, name, None), str):
                setattr(error, name, printable(value))
        raise


def _flags_without_a_type(parameters: list[Any]) -> list[Any]:
    """The same parameters. `--resume <bool>`, as Typer writes it in help, would say that a value has to follow."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="tdpo",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command whose error for an unknown dotted option explains how to write an override."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None) or ""
            if "." in option and hasattr(error, "message"):
                error.message += f". Overrides have no dashes: {option.lstrip('-')}=VALUE"
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_without_a_type(super().get_params(ctx))


def _show_version(is_set: bool) -> None:
    if is_set:
        from .. import __version__

        typer.echo(f"tdpo {__version__}")
        raise typer.Exit()


@app.callback()
def tdpo(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Token-level preference optimisation of language models, and the evidence of what it does.

    New here? [bold]tdpo demo[/bold] shows everything on a small model, in minutes on two cores.
    With preferences of your own, name your file and model in a recipe:

        tdpo recipe --example preferences > recipe.yaml
        tdpo doctor recipe.yaml
        tdpo train recipe.yaml
        tdpo evaluate runs/my-run
        tdpo report runs/my-run

    With prompts and a reward instead of preferences, [bold]tdpo ppo[/bold] trains:

        tdpo recipe --example ppo_sentiment > recipe.yaml
        tdpo ppo recipe.yaml
    """


_PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Start": (demo, explain, doctor, recipe),
    "Train": (pairs, train, ppo, scale, merge, push),
    "Judge": (generate, evaluate, compare, exact, report),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(_command.__name__, cls=Command, rich_help_panel=_panel)(guarded(_command))

caches = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", cls=Commands, help=CACHE_HELP)
caches.command("list", cls=Command)(guarded(list_caches))
caches.command("clear", cls=Command)(guarded(clear))
caches.command("fetch", cls=Command)(guarded(fetch))
app.add_typer(caches, name="cache", rich_help_panel="Start")
