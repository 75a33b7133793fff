"""`tdpo evaluate`: the trained model of a run against its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import out, progress_in_stages, quiet_libraries, say
from ._device import say_device
from ._errors import CommandError
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
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            metavar="FUNCTION",
            help="Judge the responses by this function: file.py:name or package.module:name.",
            show_default=False,
        ),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option(
            "--reward-model",
            metavar="MODEL",
            help="Judge them by this sequence-classification model with one output: a name or a folder.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Judge a trained model against its base: held-out pairs, generations, rewards, both KLs, diversity.

    Both models answer the held-out prompts of the environment with the same
    seeds; without one, those of the held-out pairs, if evaluation.max_prompts
    says how many, or if a judge is named. Writes evaluation.json, and with
    responses samples.jsonl, into the run directory. Overrides may change the
    evaluation section and model.device, not how the run was trained.

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
        tdpo evaluate runs/mine evaluation.max_prompts=32
        tdpo evaluate runs/mine --reward judge.py:politeness
        tdpo evaluate runs/mine --reward-model my-org/reward-model
    """
    from ._evaluated import Flags, evaluation_for

    flags = Flags(data=data, environment=environment, base=base, reference=reference, out=out_dir)
    judge = _judge(reward, reward_model)
    judging = evaluation_for(run, flags, overrides or ())
    say_device("judging", judging.recipe.model.device)
    judging.make_room()
    for sentence in judging.remarks:
        say(sentence)
    evaluation = evaluate_in(judging.run, judging.recipe, trained=judging.trained, label=judging.label, judge=judge)
    print_evaluations({judging.label: evaluation})
    answered = evaluation.get("generations") is not None
    files = ("evaluation.json", "samples.jsonl") if answered else ("evaluation.json",)
    say(f"written: {', '.join(str(judging.run.path / name) for name in files)}")
    if not answered and judging.recipe.environment is None:
        say(
            "no responses: evaluation.max_prompts=32 has both models answer up to 32 held-out prompts, and --reward or "
            "--reward-model has them judged"
        )


def _judge(function: str | None, model: str | None) -> Any:
    """What the options name as judge, or None. Raises `CommandError` where they name two, or nothing by name."""
    from ..config import Reward

    if function is not None and model is not None:
        raise CommandError("--reward and --reward-model both name a judge; give one of the two")
    for option, name in (("--reward", function), ("--reward-model", model)):
        if name is not None and not name.strip():
            expected = "file.py:name or package.module:name" if option == "--reward" else "a model's name or folder"
            raise CommandError(f"{option} names no judge; expected {expected}, got {name!r}")
    return None if function is None and model is None else Reward(function=function, model=model)


def evaluate_in(run: Any, recipe: Any, *, trained: Any = None, label: str = "", judge: Any = None) -> dict[str, Any]:
    """Evaluate `run` with a progress bar for each stage. Returns the content of evaluation.json."""
    quiet_libraries()
    from ..evaluation import evaluate_run

    with progress_in_stages(label or run.path.name) as update:
        return evaluate_run(run, recipe, trained=trained, judge=judge, progress=update)


def print_evaluations(evaluations: dict[str, dict[str, Any]]) -> None:
    """Print a table of the base model beside the trained ones on stdout."""
    from ._tables import comparison_table, notes

    out().print(comparison_table(evaluations))
    for line in notes(evaluations):
        out().print(line, markup=False)
