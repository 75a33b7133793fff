"""What an evaluation on held-out pairs says, in sentences; and what a run lacks, with the command that adds it."""

from __future__ import annotations

import shlex

from ..records.dotted import at, dict_at, text_at
from ..records.names import RECIPE_FILE
from ..records.run_places import newest_checkpoint
from .displacement import evaluated_pairs
from .numbers import excludes_zero, interval, number, show, show_interval, show_share
from .run import Run
from .run_reading import awaits_its_model


def pairs_sentence(run: Run) -> str:
    """How many held-out pairs the run ranks as they were, by how much, at how much KL; "" where none were judged."""
    accuracy, margin = (at(run.evaluation, "pairs", key) for key in ("accuracy", "margin"))
    if number(accuracy) is None:
        return ""
    kl = number(at(run.evaluation, "generations", "trained", "reverse_kl"))
    return (
        f"{run.label} prefers the chosen response in {show_share(accuracy)} of the {evaluated_pairs(run)}"
        f"{_limits(run, 'accuracy', share=True)}"
        f"{'' if number(margin) is None else f', by a margin of {show(margin)}'}"
        f"{'' if number(margin) is None else _limits(run, 'margin')}"
        f"{'' if kl is None else f', at {show(kl)} nats of reverse KL per response'}."
    )


def _limits(run: Run, key: str, *, share: bool = False) -> str:
    shown = show_interval(at(run.evaluation, "pairs", "intervals", key), show_share if share else show)
    return f" {shown}" if shown else ""


def moved_sentences(runs: list[Run]) -> list[str]:
    """One sentence a run: how both sides of the held-out pairs moved from the base's own log-probabilities."""
    sentences = []
    for run in runs:
        chosen, rejected = (_moved(run, side) for side in ("chosen", "rejected"))
        if chosen and rejected:
            both_fell = all(_direction(run, side) < 0 for side in ("chosen", "rejected"))
            end = ": both sides lost probability, which is likelihood displacement" if both_fell else ""
            sentences.append(
                f"{run.label}: against the base’s own log-probabilities, the chosen responses {chosen} and the "
                f"rejected ones {rejected} (means over {evaluated_pairs(run)}){end}."
            )
    return sentences


def _moved(run: Run, side: str) -> str:
    change = number(at(run.evaluation, "pairs", f"{side}_log_ratio"))
    if change is None:
        return ""
    limits = _limits(run, f"{side}_log_ratio")
    direction = _direction(run, side)
    if direction == 0:
        return f"did not measurably move ({show(change)} nats{limits})"
    verb, shown_limits = ("gained", limits) if direction > 0 else ("lost", _turned(run, side))
    return f"{verb} {show(abs(change))} nats{shown_limits}"


def _turned(run: Run, side: str) -> str:
    """The interval of a loss, with the loss as a positive number."""
    pair = interval(at(run.evaluation, "pairs", "intervals", f"{side}_log_ratio"))
    shown = "" if pair is None else show_interval([-pair[1], -pair[0]])
    return f" {shown}" if shown else ""


def _direction(run: Run, side: str) -> int:
    """1 where the side gained log-probability, −1 where it lost some, 0 where its interval includes zero."""
    change = number(at(run.evaluation, "pairs", f"{side}_log_ratio")) or 0.0
    sure = excludes_zero(at(run.evaluation, "pairs", "intervals", f"{side}_log_ratio"))
    return 0 if sure is False or change == 0 else 1 if change > 0 else -1


def gaps(runs: list[Run], part: str) -> list[tuple[str, str]]:
    """(sentence, command) for each run whose evaluation lacks `part`, "pairs" or "generations".

    The command adds it and is "" where none can. A run on own responses has none held out, which is said elsewhere.
    """
    lacking = [run for run in runs if not run.evaluation.get(part) and not (part == "pairs" and run.on_own_responses)]
    return [_gap(run, part) for run in lacking]


def unjudged(runs: list[Run]) -> list[tuple[str, str]]:
    """(sentence, command) for each run whose responses have no reward, for a page on which others have one."""
    return [
        (
            f"Nothing judged the responses of {run.label}, so no reward of it is known.",
            f"tdpo evaluate {shlex.quote(str(run.path))} --reward file.py:function",
        )
        for run in runs
        if run.evaluation.get("generations") and not run.has_reward
    ]


def _gap(run: Run, part: str) -> tuple[str, str]:
    command = f"tdpo evaluate {shlex.quote(str(run.path))}"
    data = dict_at(run.recipe, "data")
    holds_none = bool(data) and data.get("eval") is None and data.get("eval_fraction") is None
    nothing_held_out = holds_none and run.recipe.get("environment") is None
    if part == "pairs" and holds_none:
        return f"The recipe of {run.label} holds no pairs out (data.eval_fraction, data.eval).", ""
    if nothing_held_out:
        return f"The recipe of {run.label} holds no prompts out that could be answered (data.eval_fraction).", ""
    if not run.evaluation and awaits_its_model(run.path, run.status):
        return _unfinished(run)
    if not run.evaluation:
        return f"{run.label} has not been evaluated.", command
    if part == "pairs":
        return f"{run.label} was evaluated without held-out pairs.", command
    sentence = f"No responses of {run.label} were evaluated: this has both models answer up to 32 held-out prompts."
    return sentence, f"{command} evaluation.max_prompts=32"


def _unfinished(run: Run) -> tuple[str, str]:
    """What goes on with the training, or judges its newest checkpoint where another process still trains."""
    sentence = f"The training of {run.label} has not finished, so it has no model to evaluate yet"
    is_resumable = run.recipe_file == RECIPE_FILE and text_at(run.status, "state") != "running"
    if is_resumable:
        return f"{sentence}: this goes on with it.", run.going_on
    checkpoint = newest_checkpoint(run.path)
    if checkpoint is None:
        return f"{sentence}.", ""
    return f"{sentence}; its newest checkpoint can be judged.", f"tdpo evaluate {shlex.quote(str(checkpoint))}"
