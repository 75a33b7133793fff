"""`tdpo merge`: an adapter folded into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import quiet_libraries, say
from ._errors import CommandError
from ._options import Debug


def merge(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run directory, a trainer's output_dir, a checkpoint, or the folder of an adapter.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged model.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Fold a trained adapter into its base model: one plain model, usable without peft.

    A run that trained all weights needs no merging: its model folder is one
    plain model already. What is written is loaded again and compared with the
    adapter's model; where they differ, nothing is written. A base in four or
    eight bits is dequantised first, and the line that follows says so.

    [bold]Examples[/bold]

        tdpo merge runs/sentiment_tdpo2 merged
        tdpo generate merged --prompt "Tell me about your day."
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"{out} exists and is not empty; name a new folder")
    if not source.is_dir():
        raise CommandError(f"{source}: no such folder; expected a run directory or the folder of an adapter")
    folder = model_folder(source)
    quiet_libraries()
    from ..training.saving import save_merged

    remark = save_merged(folder, out)
    say(f"merged {folder} into {out}")
    if remark:
        say(remark)


def model_folder(source: Path) -> str:
    """Return the folder of the model in `source`: a run, a trainer's output_dir, a checkpoint, a model; or its name.

    What was chosen among several is said.
    """
    from ..runs.trained_folders import trained_folder

    if not source.is_dir():
        return str(source)
    trained = trained_folder(source)
    for remark in trained.remarks:
        say(remark)
    return str(trained.model)
