"""`tdpo pairs`: preference rows sampled from a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ._console import duration, progress, quiet_libraries, say
from ._device import say_device
from ._errors import CommandError
from ._options import Debug, Overrides, RecipeArgument, read_preferences_recipe

if TYPE_CHECKING:
    from ..config import Recipe
    from ..environments import Environment
    from ..sampling.pair_sampling import PairSummary

Split = Literal["train", "held_out"]


def pairs(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Preference file to write (JSONL); default: data.train, or data.eval.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which prompts of the environment to sample from.")] = "train",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    debug: Debug = False,
) -> None:
    """Sample responses from the model and make preference rows of them.

    Each prompt of the recipe's environment is answered several times; the
    environment's reward scores the responses, and the best is paired with the
    worst, the second best with the second worst. The rows are what `tdpo train`
    reads.

    An interrupted command continues where it stopped when it is given again.

    [bold]Examples[/bold]

        tdpo pairs recipe.yaml
        tdpo pairs recipe.yaml --split held_out
        tdpo pairs recipe.yaml sampling.samples_per_prompt=8 seed=1 --out pairs.jsonl
    """
    loaded_recipe = read_preferences_recipe(recipe, overrides)
    sample_to(loaded_recipe, out or _default_out(loaded_recipe, split), split, overwrite=overwrite)


def _default_out(recipe: Recipe, split: Split) -> Path:
    key, target = ("data.train", recipe.data.train) if split == "train" else ("data.eval", recipe.data.eval)
    if target is None or not target.endswith(".jsonl"):
        raise CommandError(f"{key} is {target!r}, not a .jsonl file to write to; name one with --out")
    return Path(target)


def sample_to(recipe: Recipe, out: Path, split: Split, *, overwrite: bool = False) -> PairSummary:
    """Sample preference rows from the prompts of `split` into the file `out`. Returns counts and the mean reward.

    Raises CommandError if there is no environment, no prompt in the split, or already a file without `overwrite`.
    """
    environment = _environment(recipe, split)
    if out.exists() and not overwrite:
        raise CommandError(f"{out} exists; --overwrite replaces it, --out names another file")
    quiet_libraries()
    say_device("comparing the server with the model" if recipe.sampling.is_server else "sampling", recipe.model.device)
    from ..models import load_causal_lm, load_tokenizer, quantization_config
    from ..models.precision import loaded_dtype
    from ..models.product_speed import why_slow
    from ..records.names import ADAPTERS_FOLDER
    from ..sampling.engines import response_sampler
    from ..sampling.pair_sampling import pair_settings, sample_pairs

    started = time.monotonic()
    sampler = response_sampler(recipe.sampling, folder=out.parent / ADAPTERS_FOLDER, owner=str(out.absolute()))
    options: dict[str, Any] = {"trust_remote_code": recipe.model.trust_remote_code}
    tokenizer = load_tokenizer(recipe.model.name, **options)
    quantization = quantization_config(recipe.model.quantization)
    options |= {"dtype": recipe.model.dtype, "quantization": quantization, "device": recipe.model.device}
    model = load_causal_lm(recipe.model.name, **options)
    if slow := why_slow(loaded_dtype(model), model.device):
        say(f"{slow}.", style="yellow")
    total = len(environment.train) * recipe.sampling.samples_per_prompt
    settings = pair_settings(recipe.sampling, environment, recipe.seed)
    sampling_started = time.monotonic()
    with progress(f"sampling ({split})") as update:

        def on_tokens(tokens: int, complete: int) -> None:
            speed = tokens / max(time.monotonic() - sampling_started, 1e-9)
            update(complete, total, f"{speed:.0f} tokens/s")

        try:
            summary = sample_pairs(
                model, tokenizer, environment, out, settings, sampler=sampler, progress=on_tokens, overwrite=overwrite
            )
        except KeyboardInterrupt:
            say(f"what was sampled is kept beside {out}; the same command continues")
            raise
        finally:
            sampler.close()
    say(f"{out}: {_in_words(summary)}, in {duration(time.monotonic() - started)}")
    return summary


def _in_words(summary: PairSummary) -> str:
    left_out = {"ties": summary.counts.ties, "identical": summary.counts.identical, "empty": summary.counts.empty}
    parts = [
        f"{summary.counts.pairs} pairs from {summary.samples} responses to {summary.prompts} prompts",
        f"mean reward {summary.reward_mean:.3f}",
        *(f"{count} {name}" for name, count in left_out.items() if count),
    ]
    return ", ".join(parts)


def _environment(recipe: Recipe, split: Split) -> Environment:
    from dataclasses import replace

    if recipe.environment is None:
        raise CommandError(
            "the recipe has no environment, so there are neither prompts nor a reward to make pairs with; "
            "add environment.name=sentiment, or train on a file of your own"
        )
    environment = recipe.environment.load()
    if split == "train":
        return environment
    if not environment.held_out:
        raise CommandError("the environment holds no prompts out to sample from; set environment.held_out")
    return replace(environment, train=environment.held_out)
