"""`tdpo evaluate`: the trained model of a run against its base model."""

from __future__ import annotations

from typing import Any

from ._console import out, progress_in_stages, quiet_libraries, say
from ._errors import CommandError
from ._options import Debug, Overrides, RunArgument

ALLOWED = ("evaluation", "environment", "data.eval", "data.eval_split", "prompts.eval")


def evaluate(run: RunArgument, overrides: Overrides = None, debug: Debug = False) -> None:
    """Judge a trained model against its base: held-out pairs, generations, rewards, both KLs, diversity.

    Both models answer the held-out prompts of the environment with the same
    seeds. Writes evaluation.json and samples.jsonl into the run directory.
    Overrides may change the evaluation section, not how the run was trained.

    [bold]Examples[/bold]

        tdpo evaluate runs/sentiment_tdpo2
        tdpo evaluate runs/sentiment_tdpo2 evaluation.samples_per_prompt=16 evaluation.seed=7
        tdpo evaluate runs/mine environment.name=sentiment
    """
    from ..config import load_recipe
    from ..runs import RunDirectory

    run_directory = RunDirectory.open(run)
    for override in overrides or ():
        key = override.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in ALLOWED):
            raise CommandError(
                f"{override!r} cannot be overridden here: it says how the run was trained; "
                f"an evaluation can change {', '.join(ALLOWED)}"
            )
    run_directory.model_path  # noqa: B018  # raises if there is nothing to evaluate yet
    evaluation = evaluate_in(run_directory, load_recipe(run_directory.path, overrides or (), say=say))
    print_evaluations({run_directory.path.name: evaluation})
    say(f"written: {run_directory.path / 'evaluation.json'}, {run_directory.path / 'samples.jsonl'}")


def evaluate_in(run: Any, recipe: Any) -> dict[str, Any]:
    """Evaluate `run` with a progress bar for each stage. Returns the content of evaluation.json."""
    quiet_libraries()
    from ..evaluation import evaluate_run

    with progress_in_stages(run.path.name) as update:
        return evaluate_run(run, recipe, progress=update)


def print_evaluations(evaluations: dict[str, dict[str, Any]]) -> None:
    """Print a table of the base model beside the trained ones on stdout."""
    from ._tables import comparison_table, notes

    out().print(comparison_table(evaluations))
    for line in notes(evaluations):
        out().print(line, markup=False)
