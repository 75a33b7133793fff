"""The parts that `tdpo train` and `tdpo ppo` share: starting, resuming and ending a run, with their messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._console import duration, quiet_libraries, say
from ._errors import CommandError

if TYPE_CHECKING:
    from ..config import AnyRecipe
    from ..runs import RunDirectory

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run from its newest complete checkpoint.")]
LastGood = Annotated[
    bool,
    typer.Option("--last-good", help="With --resume: where the newest checkpoint is damaged, the newest that is not."),
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="With --resume: go on though rows, weights or functions have changed. It is recorded in the run.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the run in run_dir. It stays until all is checked, and is kept until the new model is saved.",
    ),
]
# With a larger value of one of these a finished run has more to do.
LENGTH = ("training.epochs", "training.max_steps", "ppo.iterations")


def check_options(resume: bool, last_good: bool, accept_changes: bool, overwrite: bool) -> None:
    """Raise `CommandError` for contradictory options.

    One option keeps the run and another deletes it, or an option about resuming is used without --resume.
    """
    if resume and overwrite:
        raise CommandError("--resume continues the run and --overwrite replaces it; give one of them")
    for option, is_set in (("--last-good", last_good), ("--accept-changes", accept_changes)):
        if is_set and not resume:
            raise CommandError(f"{option} says how --resume continues a run; give it together with --resume")


def train_in_run_dir(
    recipe: AnyRecipe, work: Callable[[RunDirectory, bool], dict[str, Any]], *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Call `work(run, resume)` in the run directory of the recipe and return its result, {} for a finished run.

    Messages say what happens. After an interruption they say how to continue the run, and where a run was to be
    replaced, what became of it.
    """
    from ..records.folders import require_writable
    from ..runs import RunDirectory

    quiet_libraries()
    run = RunDirectory(recipe.run_dir)
    if not run.path.is_file():  # RunDirectory has a sentence for that
        require_writable(run.path, "run_dir")
    if resume and not run.is_run():
        say(f"there is no run in {run.path} to resume: starting it")
        resume = False
    if resume and _nothing_left(run, recipe):
        say(f"{run.path} is finished (step {run.status()['step']}); `tdpo evaluate {run.path}` judges it")
        return {}
    started = time.monotonic()
    try:
        with RunDirectory.training(recipe, resume=resume, overwrite=overwrite) as run:
            _say_where_it_starts(run, resume)
            summary = work(run, resume)
    except KeyboardInterrupt:
        for sentence in (what_of_the_old_run(run), how_to_resume(run)):
            if sentence is not None:
                say(sentence)
        raise
    except Exception:
        if overwrite and (sentence := what_of_the_old_run(run)) is not None:
            say(sentence)
        raise
    say(f"{_time_taken(summary, time.monotonic() - started)}; the model is in {run.path / 'model'}")
    return summary


def _time_taken(summary: dict[str, Any], whole: float) -> str:
    """Say how long training took, and apart from it what the reference cache cost, which other runs need not pay."""
    cache = summary.get("cache_seconds")
    before = f", after {duration(cache)} for the reference cache" if cache else ""
    trained = duration(summary.get("seconds", whole))
    return f"trained in {trained}{before} ({duration(whole)} with loading, judging and saving)"


def _nothing_left(run: RunDirectory, recipe: AnyRecipe) -> bool:
    """Return whether the run is finished and the recipe asks for no more updates."""
    if run.status().get("state") != "finished":
        return False
    changed = run.check_resumable(recipe)
    return not any(key in changed for key in LENGTH)


def _say_where_it_starts(run: RunDirectory, resume: bool) -> None:
    for checkpoint in run.checkpoints().incomplete:
        say(f"{checkpoint} is incomplete (cut off while being written) and is ignored", style="yellow")
    if resume:
        step = run.resume_step()
        say(f"resuming {run.path} from step {step}" if step else f"{run.path} has no complete checkpoint: step 0")


def what_of_the_old_run(run: RunDirectory) -> str | None:
    """After a run that was to replace another ended without a model: where the other is. None if there is none."""
    if run.still_stands:
        return f"the run in {run.path} is as it was: nothing of it was replaced"
    if run.has_put_back:
        return f"the earlier run is back in {run.path}: the new one had made no update"
    if (kept := run.replaced_run()) is not None:
        return f"the earlier run is kept in {kept}, whole, until the new one has saved a model"
    return None


def how_to_resume(run: RunDirectory) -> str | None:
    """Describe where an interrupted run stands and how to continue it; None where an earlier one stands there."""
    if run.still_stands or run.has_put_back:
        return None
    if not run.is_run():
        return "interrupted before the run began; nothing was written"
    status, step = run.status(), run.resume_step()
    where = f"step {status.get('step', 0)} of {status.get('max_steps') or '?'}"
    restart = f"the checkpoint of step {step} is kept" if step else "no checkpoint was written yet, it will start over"
    return f"{run.path} stopped at {where}; {restart}.\nContinue: {run.command()} {run.path} --resume"
