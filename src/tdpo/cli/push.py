"""`tdpo push`: a trained model, its card and its report on the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import quiet_libraries, say, write
from ._errors import CommandError
from ._options import Debug

if TYPE_CHECKING:
    from ..runs.trained_folders import TrainedFolder
    from ..workflows.hub_upload import Upload


def push(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory, a trainer's output_dir, a checkpoint, or the folder of an adapter or a model.",
            show_default=False,
        ),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if it is new.", show_default=False)
    ],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave out report.html.")] = False,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="Of the commit.", show_default=False)
    ] = "",
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Default: main.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Upload a trained model to the hub: weights or adapter, tokenizer, card and report, in one commit.

    A new repository is private unless --public is given; an existing one stays
    what it is. The report is made for this run; it holds responses, and the
    recipe with its paths. Log in with `hf auth login`, or set HF_TOKEN.

    [bold]Examples[/bold]

        tdpo push runs/sentiment_tdpo2 me/cheerful --dry-run
        tdpo push runs/sentiment_tdpo2 me/cheerful
        tdpo merge runs/sentiment_tdpo2 merged && tdpo push merged me/cheerful-merged
    """
    from ..runs.trained_folders import trained_folder

    if not source.is_dir():
        raise CommandError(f"{source}: no such folder; expected a run directory or the folder of a model")
    trained = trained_folder(source)
    quiet_libraries()
    from ..workflows.hub_upload import is_private, planned_upload, upload

    for remark in trained.remarks:
        say(remark)
    with tempfile.TemporaryDirectory() as folder:
        report = None if no_report else _report_of(trained, source, Path(folder))
        plan = planned_upload(trained.model, repository, report)
        _show(plan, trained.model)
        if dry_run:
            write(f"nothing was sent; a new repository would be {'public' if public else 'private'}")
            return
        before = is_private(repository)
        if public and before:
            raise CommandError(f"{repository} is there and private; --public is for a new one: see its settings")
        if before is False:
            say(f"{repository} is there and public: everyone will see what is sent", style="yellow")
        name = trained.results_name
        url = upload(plan, private=not public, message=message or f"{name}, trained by tdpo", revision=revision)
    write(f"uploaded to {url}")


def _report_of(trained: TrainedFolder, source: Path, folder: Path) -> Path | None:
    """Write the report of this run alone into `folder`; None for a model that no run is known of."""
    if trained.recipe_run is None and not trained.record:
        say(f"no report: {source} belongs to no run that is known here")
        return None
    from ..report import write_report

    return write_report([source], folder / "report.html")


def _show(plan: Upload, model: Path) -> None:
    from ..records.caches import readable_bytes

    total = sum(map(plan.size_of, plan.files))
    write(f"{model} to {plan.repository}: {len(plan.files)} files, {readable_bytes(total)}")
    for name in plan.files:
        write(f"  {name}  {readable_bytes(plan.size_of(name))}")
    if plan.left_out:
        write(f"  left out: {', '.join(plan.left_out)}")
    for remark in plan.remarks:
        say(remark, style="yellow")
