"""`tdpo train`."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import duration, progress_in_stages, quiet_libraries, say
from ._errors import CommandError
from ._options import Debug, Overrides, RecipeArgument, read_recipe

if TYPE_CHECKING:
    from ..config import Recipe
    from ..runs import RunDirectory


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest complete checkpoint.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in run_dir already.")] = False,
    debug: Debug = False,
) -> None:
    """Train a model on preferences, as a recipe says.

    Everything lands in the recipe's run_dir: the resolved recipe first, then
    metrics.jsonl, checkpoints, and the trained model in model/. The data is
    read and checked before the model loads.

    Ctrl-C leaves a run that --resume continues.

    [bold]Examples[/bold]

        tdpo train recipe.yaml
        tdpo train recipe.yaml loss.name=dpo loss.alpha=null run_dir=runs/dpo
        tdpo train recipe.yaml model.name=Qwen/Qwen3-0.6B model.lora.rank=32
        tdpo train recipe.yaml --resume
        accelerate launch --num_processes 2 -m tdpo.cli.main train recipe.yaml
    """
    if resume and overwrite:
        raise CommandError("--resume continues the run and --overwrite deletes it; give one of them")
    train_recipe(read_recipe(recipe, overrides), resume=resume, overwrite=overwrite)


def train_recipe(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train in `recipe.run_dir` with a progress bar; the summary that training returns, {} for a finished run."""
    from ..runs import RunDirectory

    quiet_libraries()
    run = RunDirectory(recipe.run_dir)
    if resume and not run.is_run():
        say(f"there is no run in {run.path} to resume: starting it")
        resume = False
    if resume and _nothing_left(run, recipe):
        say(f"{run.path} is finished (step {run.status()['step']}); `tdpo evaluate {run.path}` judges it")
        return {}
    started = time.monotonic()
    try:
        with RunDirectory.training(recipe, resume=resume, overwrite=overwrite) as run:
            summary = _train(recipe, run, resume)
    except KeyboardInterrupt:
        say(how_to_resume(run))
        raise
    say(f"trained in {duration(time.monotonic() - started)}; the model is in {run.path / 'model'}")
    return summary


def _nothing_left(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether the run is finished and the recipe asks for no more updates."""
    if run.status().get("state") != "finished":
        return False
    changed = run.check_resumable(recipe)
    return not any(key in changed for key in ("training.epochs", "training.max_steps"))


def _train(recipe: Recipe, run: RunDirectory, resume: bool) -> dict[str, Any]:
    from ..training.run import train

    for checkpoint in run.checkpoints().incomplete:
        say(f"{checkpoint} is incomplete (cut off while being written) and is ignored", style="yellow")
    if resume:
        step = run.resume_step()
        say(f"resuming {run.path} from step {step}" if step else f"{run.path} has no complete checkpoint: step 0")
    with progress_in_stages(recipe.loss.name) as update:
        return train(
            recipe,
            run,
            resume=resume,
            say=say,
            progress=partial(update, "updates"),
            cache_progress=partial(update, "pairs for the reference cache"),
        )


def how_to_resume(run: RunDirectory) -> str:
    """Where an interrupted run is and how it goes on."""
    if not run.is_run():
        return "interrupted before the run began; nothing was written"
    status, step = run.status(), run.resume_step()
    where = f"step {status.get('step', 0)} of {status.get('max_steps') or '?'}"
    kept = f"the checkpoint of step {step} is kept" if step else "no checkpoint was written yet, it will start over"
    return f"{run.path} stopped at {where}; {kept}.\nContinue: tdpo train {run.path} --resume"
