"""`tdpo report`: one HTML file about runs or a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import say
from ._options import Debug


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories (of a recipe, or a trainer's output_dir) and evaluated checkpoints or models, shown "
            "side by side; or the folder of one study.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file; default: report.html in the first run, or in the study.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file about one run or several: what was run, curves, base against trained, samples.

    For a study's folder (`tdpo compare`) it shows the frontiers, the claims' verdicts, diversity and all responses.

    The file holds everything it shows and opens without a network.

    [bold]Examples[/bold]

        tdpo report runs/sentiment_tdpo2
        tdpo report runs/sentiment_tdpo2 runs/sentiment_dpo --out comparison.html
        tdpo report runs/study_quick
    """
    from ..records.run_places import meant_by, results_folder
    from ..report import is_study, write_report, write_study_report

    studies = [folder for folder in runs if is_study(folder)]
    if studies and len(runs) > 1:
        raise typer.BadParameter(
            f"{studies[0]} is the folder of a study, which has a report of its own; give it alone", param_hint="RUN..."
        )
    if studies:
        say(f"report: {write_study_report(studies[0], out)}")
        return
    first = meant_by(runs[0])
    say(f"report: {write_report(runs, out or results_folder(first) / 'report.html')}")
