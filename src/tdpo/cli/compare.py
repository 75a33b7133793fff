"""`tdpo compare`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import duration, out, quiet_libraries, say, write
from ._errors import FAILURE, explain
from ._options import Debug, Overrides

if TYPE_CHECKING:
    from ..comparison.cells import StudyFiles
    from ..comparison.study import Finished
    from ..config import Study
    from ..records.study_tables import CellKey

StudyArgument = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="YAML file of the study, or a study's folder (its study.yaml).",
        show_default=False,
    ),
]


def compare(
    study: StudyArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the study, list its runs and estimate their time from a few measured steps. Runs none.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare methods: arms × strengths × seeds on several tasks, with intervals, claims and a report.

    Every run gets the same number of scored responses. The reference answers
    first; its responses become the preferences that SFT, DPO and TDPO learn from,
    while PPO and online arms draw their own. All are judged alike on held-out prompts: reward, both
    exact KLs, diversity.

    Interrupted or killed, the same command goes on: finished runs are kept,
    others are taken up at their last checkpoint, failed ones are tried again.

    Everything lands in study_dir: the runs in cells/, results.csv, prompts.csv,
    responses.csv, curves.csv, questions.json, claims.json and report.html.

    [bold]Examples[/bold]

        tdpo compare recipes/study_quick.yaml --dry-run
        tdpo compare recipes/study_quick.yaml
        tdpo compare recipes/study_quick.yaml budget=32 study_dir=runs/look
        tdpo compare runs/study_quick workers=1
    """
    loaded_study = read_study(study, overrides)
    if dry_run:
        list_cells(loaded_study)
        return
    from ..comparison.running import Stopped
    from ..comparison.study import compare as run_study
    from ._study_board import Board

    command = shlex.join(["tdpo", "compare", str(study), *(overrides or ())])
    try:
        with Board(loaded_study) as board:
            finished = run_study(loaded_study, board, command=command)
    except Stopped as stopped:
        done, left = len(stopped.outcome.done), len(stopped.outcome.waiting)
        say(f"stopped: {done} runs are finished and kept, {left} are left. The same command goes on: {command}")
        raise stopped.interrupt from None  # so that a SIGTERM stays a SIGTERM
    _say_how_it_ended(finished, command)


def read_study(path: Path, overrides: list[str] | None) -> Study:
    """Read the study of the command. Raises `RecipeError`."""
    from ..config import load_study

    all_overrides = list(overrides or ())
    if path.is_dir() and not any(text.startswith("study_dir=") for text in all_overrides):
        all_overrides.append(f"study_dir={json.dumps(str(path))}")  # the folder may have been moved since
    return load_study(path, all_overrides, say=say)


def list_cells(study: Study) -> None:
    """Print all runs of a study, what each costs in scored responses, which are finished, and how long the rest takes.

    An estimate that cannot be made is no error: the reason is printed in its place.
    """
    from ..comparison.cells import StudyFiles, cells_of
    from ..comparison.running import is_done
    from ..comparison.study import check
    from ..records.locks import holder
    from ..records.names import LOCK_FILE
    from ..runs.run_files import RunFiles

    files, cells = StudyFiles.of(study), cells_of(study)
    check(study, files, cells)
    done = {cell for cell in cells if is_done(files, cell)}
    for cell in cells:
        run = RunFiles(files.run(cell))
        begun = f": {run.in_words()}" if cell not in done and run.is_run() else ""
        write(f"{'done   ' if cell in done else 'to do  '} {files.name(cell)}{begun}")
    if who := holder(files.folder / LOCK_FILE):
        write(f"{files.folder} is being run now ({who})")
    left = [cell for cell in cells if cell not in done]
    trained = sum(cell.arm != "reference" for cell in cells)
    write(
        f"{len(cells)} runs: {trained} trained, each on {study.budget} scored responses, and the reference for every "
        f"task and seed. In {files.folder}: {len(done)} done, {len(left)} to do"
    )
    if left:
        _say_how_long(study, files, left, [cell for cell in cells if cell in done])


def _say_how_long(study: Study, files: StudyFiles, left: list[CellKey], done: list[CellKey]) -> None:
    from ..comparison.estimating import estimate
    from ..comparison.study import workers_of

    quiet_libraries()
    try:
        estimated = estimate(study, files, left, done, say)
    except Exception as error:  # the runs themselves may still do well: it is only the estimate that is missing
        write(f"no estimate of the time: {explain(error)[0]}")
        return
    workers = min(workers_of(study), len(left))
    together = f"{workers} runs at a time" if workers > 1 else "one run at a time"
    write(f"time: about {duration(estimated.seconds / workers)} on this machine, with {together}")
    for ground in estimated.grounds:
        write(f"  {ground}")


def _show_results(folder: Path) -> OSError | None:
    """Print tables, answers and claims, and write the report. Returns the error if it could not be written."""
    from ..report import write_study_report
    from ._study_tables import answers_text, claims_text, results_tables

    for table in results_tables(folder):
        out().print(table)
        write("")
    for line in (*answers_text(folder), *claims_text(folder)):
        write(line)
    try:
        report = write_study_report(folder)
    except OSError as error:
        return error
    write(f"\nReport: {report}\nTables: {folder / 'results.csv'} and beside it")
    return None


def _say_how_it_ended(finished: Finished, command: str) -> None:
    unwritten = finished.unwritten
    if finished.done and unwritten is None:
        unwritten = _show_results(finished.files.folder)
    say(f"{finished.done} runs finished, in {duration(finished.seconds)} of this call")
    for changed in finished.changed:
        say(f"note: {changed.sentence}", style="yellow")
    if unwritten is not None:
        say(f"tables and report could not be written: {unwritten}", style="bold red")
    if finished.failures or finished.waiting or unwritten is not None:
        for failure in finished.failures:
            say(f"failed: {finished.files.name(failure.cell)} ({failure.stage}): {failure.error}", style="bold red")
            say(f"  {failure.next}; log: {failure.log}")
        if finished.waiting:
            say(f"{finished.waiting} runs were not begun")
        say(f"To go on: {command}")
        raise typer.Exit(FAILURE)
