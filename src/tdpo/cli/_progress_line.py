"""The line of a progress bar, fitted to the width of the terminal: the count and the time left are never cut."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

SHORTEST_BAR, LONGEST_BAR = 6, 40
GAP = "  "


def progress_line(
    width: int,
    label: str,
    done: int,
    total: int | None,
    *,
    elapsed: float | None,
    left: float | None,
    note: str = "",
    bar: str = "━",
) -> Text:
    """Return the line, no wider than `width`: label, bar, count, time that has passed, time left, and the note.

    Where it is too narrow for all of them, these go first: the end of the note, by its parts between " · ", the time
    that has passed, the bar, and the end of the label.
    """
    from rich.text import Text

    count = f"{done}/{'?' if total is None else total}"
    remaining = f"{clock(left)} left"
    needed = len(count) + len(GAP) + len(remaining)
    label = shortened(label, width - needed - len(GAP))
    room = width - needed - (len(label) + len(GAP) if label else 0)
    passed = clock(elapsed)
    has_bar = room >= SHORTEST_BAR + len(GAP)
    free = room - (SHORTEST_BAR + len(GAP)) * has_bar
    shown_note = whole_parts(note, free - len(GAP))
    free -= len(GAP) + len(shown_note) if shown_note else 0
    has_passed = shown_note == note and free >= len(passed) + len(GAP)
    free -= (len(passed) + len(GAP)) * has_passed

    line = Text(no_wrap=True, end="")
    if label:
        line.append(label + GAP)
    if has_bar:
        size = min(SHORTEST_BAR + max(free, 0), LONGEST_BAR)
        full = size * done // total if total else 0
        line.append(bar * full, "bar.finished" if done == total else "bar.complete")
        line.append(bar * (size - full) + GAP, "bar.back")
    line.append(count, "progress.download")
    if has_passed:
        line.append(GAP + passed, "progress.elapsed")
    line.append(GAP + remaining, "progress.remaining")
    if shown_note:
        line.append(GAP + shown_note)
    return line


def clock(seconds: float | None) -> str:
    """Format seconds as 0:01:23."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=max(0, int(seconds))))


def shortened(text: str, width: int) -> str:
    """Return the text, its end replaced by … where it is longer than `width`."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 1 else ""


def whole_parts(note: str, width: int) -> str:
    """Return as many parts of the note, from its start, as fit into `width`: half a number would be another number."""
    shown = ""
    for part in note.split(" · "):
        longer = f"{shown} · {part}" if shown else part
        if len(longer) > width:
            break
        shown = longer
    return shown
