"""The numbers that a training logged: metrics.jsonl, or the log that transformers keeps in every checkpoint."""

from __future__ import annotations

from typing import Any

from ..records.dotted import at
from ..records.names import METRICS_FILE
from .reading import LenientFolder

STATE_FILE = "trainer_state.json"
# What TRL's trainers on pairs call the metrics.
NAMES_OF_TRL = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
}


def read_metrics(run: LenientFolder) -> list[dict[str, Any]]:
    """A line for every log, with its "step" and "split"."""
    if run.place(METRICS_FILE).exists() or not run.place(STATE_FILE).exists():
        return run.json_lines(METRICS_FILE, "there are no training curves")
    history = at(run.json(STATE_FILE, "there are no training curves"), "log_history")
    return [_line(log) for log in history if isinstance(log, dict)] if isinstance(history, list) else []


def _line(log: dict[str, Any]) -> dict[str, Any]:
    is_of_evaluation = any(name.startswith("eval_") for name in log)
    split = "eval" if is_of_evaluation else "summary" if "train_runtime" in log else "train"
    numbers = {name.removeprefix("eval_"): value for name, value in log.items()}
    return {"split": split, **{NAMES_OF_TRL.get(name, name): value for name, value in numbers.items()}}
