"""Which checkpoint a trainer resumes from: one that was written whole."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runs import RunDirectory
from ..runs.checkpoints import (
    COMPLETE,
    DamagedCheckpoint,
    damage_of,
    find_checkpoints,
    newest_whole,
    require_whole,
    unmark,
    what_else,
)

SHARDED = "pytorch_model_fsdp"  # how accelerate calls sharded weights, a folder or a file, in a checkpoint


def whole_checkpoint(resume_from: str | Path | bool | None, folder: Path) -> str | None:
    """The checkpoint that a trainer's `resume_from_checkpoint` means; True is the newest whole one in `folder`.

    Raises:
        ValueError: there is none, or the one named was cut short while it was written.
        DamagedCheckpoint: a file of it is missing, cut short or of another form than it was written in.
    """
    if resume_from is None or resume_from is False:
        return None
    if resume_from is not True:
        if not (Path(resume_from) / COMPLETE).exists():
            raise ValueError(
                f"{resume_from} was cut short while it was written, or is no checkpoint; resume from another"
            )
        require_whole(Path(resume_from))
        return str(resume_from)
    checkpoints = find_checkpoints(folder)
    if checkpoints.newest is None:
        note = (
            f"; {len(checkpoints.incomplete)} were cut short while they were written" if checkpoints.incomplete else ""
        )
        raise ValueError(f"{folder} holds no checkpoint to resume from{note}. Start without resume_from_checkpoint.")
    require_whole(checkpoints.newest)
    return str(checkpoints.newest)


def check_alike(checkpoint: Path, *, there: bool, here: bool, yes: str, no: str, advice: str) -> None:
    """Raise ValueError where a checkpoint's run was of one kind, and the run that goes on from it is of another.

    `there` and `here` say of either whether it is what `yes` says; if not, it is what `no` says.
    """
    if there != here:
        raise ValueError(
            f"{checkpoint} was written by a run {yes if there else no}, and this is one {yes if here else no}: it "
            f"cannot go on as the same run. {advice}"
        )


def check_form(checkpoint: Path, *, is_sharded: bool) -> None:
    """Raise ValueError where weights are sharded in only one of a checkpoint's run and the run that goes on from it."""
    check_alike(
        checkpoint,
        there=any(checkpoint.glob(f"{SHARDED}*")),
        here=is_sharded,
        yes="whose weights are sharded (FSDP2)",
        no="whose weights are whole on every process",
        advice="Launch it as it was launched then (docs/scaling.md), or start anew from a model that it has saved.",
    )


def checkpoint_to_resume(run: RunDirectory, *, last_good: bool, say: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint of a run, or None where it has none.

    `last_good` passes over damaged ones, says what is wrong with each, and takes their mark away, so that nothing
    resumes from them any more.

    Raises:
        DamagedCheckpoint: the newest is damaged, and `last_good` is off or none is left.
    """
    complete = run.checkpoints().complete
    for checkpoint in reversed(complete):
        damage = damage_of(checkpoint)
        if damage is None:
            return checkpoint
        if not last_good or newest_whole(run.path) is None:
            require_whole(checkpoint)
        say(f"{checkpoint} is damaged and passed over: {damage}.")
        if run.writes:
            unmark(checkpoint)
    return None


@contextmanager
def reading(checkpoint: str | Path | None, part: str) -> Iterator[None]:
    """Inside, an error of a library about a file of the checkpoint becomes one that names the checkpoint and the part.

    Pickled files are read with weights_only, which refuses what could run code.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, EOFError, RuntimeError, LookupError, TypeError,
        AttributeError,
    ) as error:  # fmt: skip
        if checkpoint is None or isinstance(error, NotImplementedError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(
            f"{checkpoint}: {part} cannot be read ({reason}): it is damaged, or was not written by this training. "
            f"{what_else(Path(checkpoint))}"
        ) from error
