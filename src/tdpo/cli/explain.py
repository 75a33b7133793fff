"""`tdpo explain`: an interactive page about the two KLs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import say
from ._options import Debug


def explain(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="HTML file to write; an existing one is replaced.")
    ] = Path("two_kls.html"),
    debug: Debug = False,
) -> None:
    """Write a page to play with the two KLs: one bump fitted to two, step by step, in either direction.

    The forward KL, KL(reference‖policy), which TDPO adds, makes the policy pay for what it
    forgets: the bump spreads over both. The reverse KL, KL(policy‖reference), which PPO adds,
    makes it pay for what it invents: the bump settles on one. Add a reward, change the
    strength β, and see when the direction matters and when the strength does.

    Then a tree of tokens: choose the KL's direction, its place (in the sigmoid as TDPO, beside
    the loss, in the loss of a policy gradient, in the reward) and its strength, and see the
    policy move to the exact optimum.

    One small file that opens in any browser, without a network.

    [bold]Examples[/bold]

        tdpo explain
        tdpo explain --out lecture/two_kls.html
    """
    from ..report import write_two_kls

    written = write_two_kls(out).resolve()
    say(f"The two KLs, to play with: {written}\nOpen it in a browser: {written.as_uri()}")
