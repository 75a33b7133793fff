"""What became of a run, in words: finished, failed, interrupted, running in another process, or killed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from .locks import holder, is_locked

KILLED = "killed"


def state_of(status: Mapping[str, Any], lock_file: Path) -> str:
    """The state that status.json gives, or "killed" where it says "running" and no process holds the lock file.

    Nobody writes a last status after SIGKILL, for want of memory, or when the machine goes down.
    """
    state = str(status.get("state", "unknown"))
    return KILLED if state == "running" and is_locked(lock_file) is False else state


def progress_in_words(status: Mapping[str, Any]) -> str:
    """How far the run came: "update 12 of 32"."""
    planned = status.get("max_steps")
    return f"update {status.get('step', 0)}" + (f" of {planned}" if planned else "")


def state_in_words(status: Mapping[str, Any], state: str, lock_file: Path) -> str:
    """What goes after the name of a run: "was killed at update 12 of 32, last seen on 2026-11-30 at 08:14 UTC"."""
    at = progress_in_words(status)
    if state == "running":
        who = holder(lock_file)
        return f"is running at {at}" + (f" ({who})" if who else "")
    seen = _moment(status.get("updated"))
    when = f" on {seen}" if seen else ""
    if state == KILLED:
        return f"was killed at {at}" + (f", last seen{when}" if seen else "")
    if state == "interrupted":
        return f"was interrupted at {at}{when}"
    if state == "failed":
        error = f": {status['error']}" if status.get("error") else ""
        return f"failed at {at}{when}{error}"
    return f"finished at {at}{when}" if state == "finished" else f"is in an unknown state ({state}) at {at}"


def _moment(text: Any) -> str | None:
    """A time as people write it; as it is where it is no time."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d at %H:%M UTC")
    except ValueError:
        return text
