"""May a run be continued with this recipe? Yes, where the trajectory stays the one that was begun."""

from __future__ import annotations

from typing import Any

from ..config import Recipe, flatten

# These change where things are written, how often, or how fast, never what is computed beyond rounding.
FREE = {
    "run_dir",
    "training.micro_batch_size",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.eval_steps",
    "training.save_steps",
    "training.save_total_limit",
    "training.report_to",
    "training.num_threads",
}
FREE_SECTIONS = ("environment", "sampling", "evaluation")
LENGTH = {"training.epochs", "training.max_steps"}


def check_resumable(stored: Recipe, given: Recipe) -> dict[str, list[Any]]:
    """The keys that differ and may, each with [stored, given].

    Free are bookkeeping keys and the sections that training does not read; also the length of the run where the
    learning rate is constant, since any other schedule is laid out over the whole length. Raises ValueError that
    names every other difference.
    """
    before, after = flatten(stored), flatten(given)
    changed = {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(key for key in after if key not in before)]
        if before.get(key) != after.get(key)
    }
    constant = given.training.scheduler.startswith("constant")
    refused = [
        f"  {key}: the run has {old!r}, the recipe {new!r}{_why(key)}"
        for key, (old, new) in changed.items()
        if not (key in FREE or key.startswith(FREE_SECTIONS) or (key in LENGTH and constant))
    ]
    if refused:
        lines = "\n".join(refused)
        raise ValueError(f"{lines}\nset these keys back, or start a new run with another run_dir=…")
    return changed


def _why(key: str) -> str:
    return " (a falling learning rate is laid out over the whole length)" if key in LENGTH else ""
