"""`tdpo ppo`: training on a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._console import progress, say
from ._options import Debug, Overrides, RecipeArgument, read_ppo_recipe
from ._training import AcceptChanges, LastGood, Overwrite, Resume, check_options, train_in_run_dir

if TYPE_CHECKING:
    from ..config import PPORecipe
    from ..runs import RunDirectory


def ppo(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Resume = False,
    last_good: LastGood = False,
    accept_changes: AcceptChanges = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train a model on a reward with PPO, as a recipe says.

    The model answers prompts, a reward judges the responses, and the model learns
    from them, held to its start by a KL: reverse or forward, sampled or exact.
    Prompts and reward come from an environment, or from a file and functions or
    reward models of your own.

    Everything lands in the recipe's run_dir: the resolved recipe first, then
    metrics.jsonl, completions.jsonl, checkpoints, and the trained model in
    model/. Ctrl-C leaves a run that --resume continues.

    [bold]Examples[/bold]

        tdpo recipe --example ppo_sentiment > recipe.yaml
        tdpo ppo recipe.yaml
        tdpo ppo recipe.yaml kl.direction=forward kl.form=exact kl.place=loss run_dir=runs/forward
        tdpo ppo recipe.yaml --resume
        accelerate launch --num_processes 2 -m tdpo ppo recipe.yaml
    """
    check_options(resume, last_good, accept_changes, overwrite)
    loaded_recipe = read_ppo_recipe(recipe, overrides)
    ppo_recipe(loaded_recipe, resume=resume, last_good=last_good, accept_changes=accept_changes, overwrite=overwrite)


def ppo_recipe(
    recipe: PPORecipe,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train in `recipe.run_dir` with a progress bar. Returns the summary of training, {} for a finished run."""

    def work(run: RunDirectory, resume: bool) -> dict[str, Any]:
        from ..workflows.ppo import train_ppo

        with progress("ppo: updates") as update:
            return train_ppo(
                recipe,
                run,
                resume=resume,
                last_good=last_good,
                accept_changes=accept_changes,
                progress=update,
                say=say,
            )

    return train_in_run_dir(recipe, work, resume=resume, overwrite=overwrite)
