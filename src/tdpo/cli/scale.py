"""`tdpo scale`: a trained adapter at another KL, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ._console import progress, quiet_libraries, say
from ._device import say_device
from ._errors import CommandError
from ._options import Debug, Overrides, Trained
from .merge import model_folder

if TYPE_CHECKING:
    from ..evaluation.scaling import Scaled


def scale(
    run: Trained,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the scaled adapter.", show_default=False)],
    overrides: Overrides = None,
    kl: Annotated[
        float | None,
        typer.Option("--kl", metavar="NATS", help="The KL to bring it to, per response.", show_default=False),
    ] = None,
    direction: Annotated[
        Literal["reverse", "forward"] | None,
        typer.Option(
            "--direction",
            help="reverse, KL(policy‖reference) on its own responses, or forward; reverse if not given.",
            show_default=False,
        ),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option("--factor", metavar="NUMBER", help="Scale by this instead.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Bring a trained adapter to the KL that you want, without training it again.

    What the adapter adds is multiplied by one factor: 0 is the reference, 1 the
    trained policy, and what lies between has the KLs between. --kl searches the
    factor (0.1 to 2) that gives this exact KL on responses to the held-out
    prompts. Overrides change the evaluation section (how many prompts are
    answered, and how) and model.device.

    [bold]Examples[/bold]

        tdpo scale runs/ppo_sentiment scaled --kl 3
        tdpo scale runs/ppo_sentiment scaled --kl 3 evaluation.max_prompts=40 evaluation.samples_per_prompt=2
        tdpo scale runs/ppo_sentiment half --factor 0.5
    """
    _check(out, kl, factor)
    if factor is not None:
        for option in [*(overrides or ()), *([] if direction is None else [f"--direction {direction}"])]:
            raise CommandError(f"{option!r} has no effect with --factor, which measures nothing; leave it out")
        _scale_by(run, out, factor)
    else:
        assert kl is not None
        _scale_to(run, out, kl, direction or "reverse", overrides or ())


def _scale_by(run: Path, out: Path, factor: float) -> None:
    from ..evaluation.scaling import scale_by

    adapter = Path(model_folder(run))
    scale_by(adapter, out, factor)
    say(f"written: {out}, {adapter} times {factor:g}")


def _scale_to(
    run: Path, out: Path, kl: float, direction: Literal["reverse", "forward"], overrides: Sequence[str]
) -> None:
    from ..evaluation.scaling import scale_run
    from ._evaluated import Flags, evaluation_for

    for override in overrides:
        if override.startswith("sampling."):
            raise CommandError(
                f"{override!r} has no effect: the KL is measured with the built-in sampler; leave it out"
            )
    judging = evaluation_for(run, Flags(), overrides)
    say_device("measuring", judging.recipe.model.device)
    for remark in judging.remarks:
        say(remark)
    if (reference := judging.trained.reference) is not None:
        say(f"the KL is to {reference}, and a factor leads to the adapter's base: at 0 the KL need not be 0")
    quiet_libraries()
    with progress(f"{judging.label}: measuring") as update:
        scaled = scale_run(
            judging.run,
            judging.recipe,
            judging.trained,
            out,
            target=kl,
            direction=direction,
            progress=lambda done, total: update(done, total, ""),
        )
    _report(scaled, kl, direction, out)


def _check(out: Path, kl: float | None, factor: float | None) -> None:
    if (kl is None) == (factor is None):
        raise CommandError("give one of --kl NATS and --factor NUMBER")
    for name, value in (("--kl", kl), ("--factor", factor)):
        if value is not None and not 0 < value < float("inf"):
            raise CommandError(f"{name} must be above 0 and finite, got {value:g}")
    if out.exists():
        raise CommandError(f"{out} exists; name a new folder")


def _report(scaled: Scaled, kl: float, direction: str, out: Path) -> None:
    meeting = scaled.meeting
    for factor, found in meeting.measured:
        say(f"factor {factor:.3f}: {direction} KL {found:.3f} nats a response")
    say(f"on {scaled.responses} responses to {scaled.prompts} prompts; another sample would say something else")
    if abs(meeting.kl / kl - 1) > 0.1:
        say(f"none of these is within a tenth of {kl:g}: it takes another factor than 0.1 to 2, or more responses")
    say(f"written: {out}, the adapter times {meeting.factor:.3f}")
