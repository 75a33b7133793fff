"""`tdpo train`: training on preferences, of a file or of the policy's own responses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ._console import progress, progress_in_stages, say
from ._options import Debug, Overrides, RecipeArgument, read_training_recipe
from ._training import AcceptChanges, LastGood, Overwrite, Resume, check_options, train_in_run_dir

if TYPE_CHECKING:
    from ..config import OnlineRecipe, Recipe
    from ..runs import RunDirectory
    from ..workflows.training_run import RunOptions


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

    With a section `online` the recipe names prompts instead: the model answers
    them, a reward ranks the answers, and the model learns from these pairs.

    Ctrl-C leaves a run that --resume continues.

    [bold]Examples[/bold]

        tdpo train recipe.yaml
        tdpo train recipe.yaml loss.name=dpo run_dir=runs/dpo
        tdpo train recipe.yaml model.name=Qwen/Qwen3-0.6B model.lora.rank=32
        tdpo train recipe.yaml --resume
        tdpo recipe --example online_sentiment > online.yaml && tdpo train online.yaml
        accelerate launch --num_processes 2 -m tdpo train recipe.yaml
    """
    check_options(resume, last_good, accept_changes, overwrite)
    loaded_recipe = read_training_recipe(recipe, overrides)
    train_recipe(loaded_recipe, resume=resume, last_good=last_good, accept_changes=accept_changes, overwrite=overwrite)


def train_recipe(
    recipe: Recipe | OnlineRecipe,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train in `recipe.run_dir` with a progress bar. Returns the summary of training, {} for a finished run."""

    def work(run: RunDirectory, resume: bool) -> dict[str, Any]:
        from ..config import Recipe

        options: RunOptions = {"resume": resume, "last_good": last_good, "accept_changes": accept_changes}
        if isinstance(recipe, Recipe):
            return _train_on_pairs(recipe, run, options)
        return _train_on_own_pairs(recipe, run, options)

    return train_in_run_dir(recipe, work, resume=resume, overwrite=overwrite)


def _train_on_pairs(recipe: Recipe, run: RunDirectory, options: RunOptions) -> dict[str, Any]:
    from ..workflows.train import train

    with progress_in_stages(recipe.loss.name) as update:
        options["progress"] = partial(update, "updates")
        cache_progress = partial(update, "pairs for the reference cache")
        return train(recipe, run, say=say, cache_progress=cache_progress, **options)


def _train_on_own_pairs(recipe: OnlineRecipe, run: RunDirectory, options: RunOptions) -> dict[str, Any]:
    from ..workflows.online import train_online

    with progress(f"{recipe.loss.name} on own responses: updates") as update:
        options["progress"] = update
        return train_online(recipe, run, say=say, **options)
