"""`tdpo evaluate`: the trained model of a run against its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import out, progress_in_stages, quiet_libraries, say
from ._options import Debug, Overrides, Trained


def evaluate(
    run: Trained,
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Held-out preferences to judge it on.", show_default=False),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment", metavar="NAME", help="Environment whose held-out prompts it answers.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="What a whole model was trained from; an adapter's base.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="MODEL", help="What KL and margin are measured against.", show_default=False
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Where results are written.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Judge a trained model against its base: held-out pairs, generations, rewards, both KLs, diversity.

    Both models answer the held-out prompts of the environment with the same
    seeds. Writes evaluation.json and samples.jsonl into the run directory.
    Overrides may change the evaluation section, not how the run was trained.

    Also takes what Python left: a trainer's output_dir, a checkpoint, the folder
    of an adapter or of a model, of TRL's trainers too. What such a folder does
    not say (what to judge on, what a whole model was trained from) is a flag.
    Results of a checkpoint or a model go into its subfolder evaluation.

    [bold]Examples[/bold]

        tdpo evaluate runs/sentiment_tdpo2
        tdpo evaluate runs/sentiment_tdpo2 evaluation.samples_per_prompt=16 evaluation.seed=7
        tdpo evaluate runs/mine environment.name=sentiment
        tdpo evaluate tdpo_output --data held_out.jsonl evaluation.max_prompts=20
        tdpo evaluate trl_output/checkpoint-500 --data held_out.jsonl --base Qwen/Qwen3-0.6B
    """
    from ._evaluated import Flags, evaluation_for

    flags = Flags(data=data, environment=environment, base=base, reference=reference, out=out_dir)
    judging = evaluation_for(run, flags, overrides or ())
    judging.make_room()
    for sentence in judging.remarks:
        say(sentence)
    evaluation = evaluate_in(judging.run, judging.recipe, trained=judging.trained, label=judging.label)
    print_evaluations({judging.label: evaluation})
    answered = evaluation.get("generations") is not None
    files = ("evaluation.json", "samples.jsonl") if answered else ("evaluation.json",)
    say(f"written: {', '.join(str(judging.run.path / name) for name in files)}")


def evaluate_in(run: Any, recipe: Any, *, trained: Any = None, label: str = "") -> dict[str, Any]:
    """Evaluate `run` with a progress bar for each stage. Returns the content of evaluation.json."""
    quiet_libraries()
    from ..evaluation import evaluate_run

    with progress_in_stages(label or run.path.name) as update:
        return evaluate_run(run, recipe, trained=trained, progress=update)


def print_evaluations(evaluations: dict[str, dict[str, Any]]) -> None:
    """Print a table of the base model beside the trained ones on stdout."""
    from ._tables import comparison_table, notes

    out().print(comparison_table(evaluations))
    for line in notes(evaluations):
        out().print(line, markup=False)
