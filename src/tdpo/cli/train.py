"""`tdpo train`: training on preferences."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ._console import progress_in_stages, say
from ._options import Debug, Overrides, RecipeArgument, read_preferences_recipe
from ._training import AcceptChanges, LastGood, Overwrite, Resume, check_options, train_in_run_dir

if TYPE_CHECKING:
    from ..config import Recipe
    from ..runs import RunDirectory


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    last_good: LastGood = False,
    accept_changes: AcceptChanges = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train a model on preferences, as a recipe says.

    Everything lands in the recipe's run_dir: the resolved recipe first, then
    metrics.jsonl, checkpoints, and the trained model in model/. The data is
    read and checked before the model loads.

    Ctrl-C leaves a run that --resume continues.

    [bold]Examples[/bold]

        tdpo train recipe.yaml
        tdpo train recipe.yaml loss.name=dpo run_dir=runs/dpo
        tdpo train recipe.yaml model.name=Qwen/Qwen3-0.6B model.lora.rank=32
        tdpo train recipe.yaml --resume
        accelerate launch --num_processes 2 -m tdpo train recipe.yaml
    """
    check_options(resume, last_good, accept_changes, overwrite)
    loaded_recipe = read_preferences_recipe(recipe, overrides, command="train")
    train_recipe(loaded_recipe, resume=resume, last_good=last_good, accept_changes=accept_changes, overwrite=overwrite)


def train_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train in `recipe.run_dir` with a progress bar. Returns the summary of training, {} for a finished run."""

    def work(run: RunDirectory, resume: bool) -> dict[str, Any]:
        from ..workflows.train import train

        with progress_in_stages(recipe.loss.name) as update:
            return train(
                recipe,
                run,
                resume=resume,
                last_good=last_good,
                accept_changes=accept_changes,
                say=say,
                progress=partial(update, "updates"),
                cache_progress=partial(update, "pairs for the reference cache"),
            )

    return train_in_run_dir(recipe, work, resume=resume, overwrite=overwrite)
