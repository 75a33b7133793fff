"""`tdpo report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import say
from ._options import Debug


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, shown side by side.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file; default: report.html in the first run.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file about one run or several: what was run, curves, base against trained, samples.

    The file holds everything it shows and opens without a network.

    [bold]Examples[/bold]

        tdpo report runs/sentiment_tdpo2
        tdpo report runs/sentiment_tdpo2 runs/sentiment_dpo --out comparison.html
    """
    from ..report import write_report

    say(f"report: {write_report(runs, out or runs[0] / 'report.html')}")
