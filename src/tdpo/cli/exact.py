"""`tdpo exact`: the benchmark on tables, where everything can be computed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ._console import duration, progress, say, write
from ._options import Debug

DEFAULT = Path("runs/exact")


def exact(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for tables and page; one that was begun is continued."),
    ] = DEFAULT,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Problems at a time; 0 is the number of cores, 2 at most.")
    ] = 0,
    debug: Debug = False,
) -> None:
    """Compare methods where everything can be computed: no language model, no noise, minutes on a CPU.

    Policies are tables over 7, 20 or 27 responses, so reward, both KLs, entropy and the
    coverage of modes are sums and not estimates. References are peaked, flat or have several
    modes; rewards are equal among good responses, higher for the common or for the rare ones.
    Every method (PPO, RLOO, DPO, TDPO1, TDPO2, f-DPO, SFT; held by either KL) is shown

      with infinite data, at each of its strengths          infinite.csv
      at the strength where it has a given reward or KL     matched.csv
      after 50, 500 and 5,000 scored responses, 100 times   finite.csv

    and all of it in figures: report.html. Interrupted or killed, the same command goes on
    after the last finished problem, and ends with the same tables.

    [bold]Examples[/bold]

        tdpo exact
        tdpo exact --out runs/exact --workers 1
    """
    from ._exact_run import ExactRun, Stopped

    arguments = ["--out", str(out)] if out != DEFAULT else []
    arguments += ["--workers", str(workers)] if workers else []
    command = shlex.join(["tdpo", "exact", *arguments])
    run = ExactRun(out, command=command)
    try:
        with progress("problems") as update:
            seconds = run.finish(workers, update)
    except Stopped as stopped:
        say(f"stopped: {stopped.done} of {stopped.total} problems are finished and kept. To go on: {command}")
        raise stopped.interrupt from None  # so that a SIGTERM stays a SIGTERM
    from ..report import write_exact_report

    page = write_exact_report(out)
    say(f"{len(run.problems)} problems, {duration(seconds)} of computing")
    write(f"Page: {page}\nTables: {', '.join(str(out / name) for name in run.tables)}")
