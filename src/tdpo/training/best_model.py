"""The best model of a run: which number picks it, and which update it is of, once it is loaded at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..runs.checkpoints import checkpoint_step

PREFIX = "eval_"
# What transformers adds to the numbers of an evaluation of pairs.
TIMES = ("runtime", "samples_per_second", "steps_per_second")

Line = Mapping[str, Any]


def check_metric(
    args: Any, logged: Iterable[str], data_sets: Sequence[str] = (), understood: Iterable[str] = ()
) -> None:
    """Refuse a `metric_for_best_model` that no evaluation logs: transformers would stop at the first one.

    Args:
        args: the trainer's.
        logged: the names of an evaluation, without "eval_".
        data_sets: the names of several evaluation data sets, which stand before those of their numbers.
        understood: names that are logged where they are asked for, for the advice.

    Raises:
        ValueError: no evaluation logs it.
    """
    metric = args.metric_for_best_model
    if metric is None or str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
        return
    known = _of_data_sets(logged, data_sets)
    name = metric.removeprefix(PREFIX)
    if name in known:
        return
    names = list(dict.fromkeys([*known, *_of_data_sets(understood, data_sets)]))
    meant = [each for each in names if each.endswith(f"_{name}")][:1] or get_close_matches(name, names, 1, 0.6)
    advice = f" Did you mean {meant[0]!r}?" if meant else ""
    default = " (which load_best_model_at_end and some schedules take by default)" if metric == "loss" else ""
    raise ValueError(
        f"metric_for_best_model={metric!r}{default} is not logged by the evaluations of this trainer.{advice} "
        f"They log {', '.join(known)}, each with or without {PREFIX!r}."
    )


def _of_data_sets(names: Iterable[str], data_sets: Sequence[str]) -> list[str]:
    names = list(names)
    return [f"{data_set}_{name}" for data_set in data_sets for name in names] or names


def loaded_best(trainer: Any) -> dict[str, Any] | None:
    """Which update the best model is of, and of how many, with the number that picked it; None where it is unknown."""
    state, metric = trainer.state, str(trainer.args.metric_for_best_model)
    if state.best_model_checkpoint is None:
        return None
    step = checkpoint_step(Path(state.best_model_checkpoint))
    metric = metric if metric.startswith(PREFIX) else PREFIX + metric
    # Of that update and not `state.best_metric`: an evaluation without a checkpoint may have been better.
    values = [line[metric] for line in state.log_history if line.get("step") == step and metric in line]
    return {"step": step, "of": state.global_step, "metric": metric, "value": values[-1] if values else None}


def lines_of_the_model(history: Sequence[Line], best: Mapping[str, Any] | None, loaded_at: int) -> list[Line]:
    """The logs until the model that a trainer holds, and those of it.

    Args:
        history: all logs.
        best: what `loaded_best` says; None where the model is that of the last update.
        loaded_at: how many logs there were when the best model was loaded.
    """
    if best is None:
        return list(history)
    return [line for line in history[:loaded_at] if line.get("step", 0) <= best["step"]] + list(history[loaded_at:])
