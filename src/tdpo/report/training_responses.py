"""What PPO's model said while it trained, as a table."""

from __future__ import annotations

from typing import Any

from ..records.dotted import at
from .numbers import counted, number, shorten, show
from .run import Run
from .tables import Cell, Row, Table, plain

SHOWN_CHARACTERS = 600  # of a prompt or a response


def training_responses(run: Run) -> Table | None:
    """What the run's model said in the first, the middle and the last iteration that it kept responses of."""
    by_iteration: dict[float, list[dict[str, Any]]] = {}
    for line in run.completions:
        iteration = number(line.get("iteration"))
        if iteration is not None:
            by_iteration.setdefault(iteration, []).append(line)
    iterations = sorted(by_iteration)
    if not iterations:
        return None
    shown_iterations = dict.fromkeys((iterations[0], iterations[len(iterations) // 2], iterations[-1]))
    rows = [_training_response(iteration, line) for iteration in shown_iterations for line in by_iteration[iteration]]
    return Table(f"What {run.label} said while training", ["Prompt", "Response", "Reward"], rows, [None] * 3)


def _training_response(iteration: float, line: dict[str, Any]) -> Row:
    step = number(line.get("step"))
    cut_off = "cut off" if line.get("finished") is False else ""
    cells = [
        Cell(shorten(_last_turn(line.get("prompt")), SHOWN_CHARACTERS)),
        Cell(shorten(plain(line.get("text")), SHOWN_CHARACTERS) or "(empty response)", cut_off),
        Cell(show(line.get("reward"))),
    ]
    return Row(f"Iteration {show(int(iteration))}", "" if step is None else f"after {counted(step, 'update')}", cells)


def _last_turn(prompt: Any) -> str:
    """A prompt as text: itself, or what was said last."""
    if isinstance(prompt, list) and prompt:
        return plain(at(prompt[-1], "content") or prompt[-1])
    return plain(prompt)
