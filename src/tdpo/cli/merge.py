"""`tdpo merge`."""

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
        typer.Argument(metavar="RUN", help="Run directory, or the folder of an adapter.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged model.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Fold a trained adapter into its base model: one plain model, usable without peft.

    A run that trained all weights needs no merging: its model folder is one
    plain model already.

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
    from ..models import load_causal_lm, load_tokenizer, merge_adapter
    from ..runs.folders import staged_folder
    from ..training.saving import telling_of_a_full_disk

    model = merge_adapter(load_causal_lm(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    with telling_of_a_full_disk(out), staged_folder(out, out.with_name(f".{out.name}.being-merged")) as staging:
        model.save_pretrained(staging)
        load_tokenizer(folder).save_pretrained(staging)
    say(f"merged {folder} into {out}")


def model_folder(source: Path) -> str:
    """Where the model of `source` lies: a run's model folder, or `source` itself (a folder or a model's name)."""
    from ..runs import RunDirectory

    run = RunDirectory(source)
    return str(run.model_path if run.is_run() else source)
