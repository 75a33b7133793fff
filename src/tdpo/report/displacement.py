"""How the log-probabilities of the chosen and the rejected responses moved in training, said from the numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..records.dotted import at, text_at
from .numbers import excludes_zero, number, show, show_signed
from .run import Run

Values = list[float]
SURE = 2.0  # standard errors of a difference of means over batches


@dataclass(frozen=True)
class Side:
    """How the log-probability of one side moved, in nats per response; unclear where chance could have moved it."""

    start: float
    end: float
    is_clear: bool

    @property
    def change(self) -> float:
        return self.end - self.start

    @property
    def fell(self) -> bool:
        return self.is_clear and self.change < 0

    def in_words(self) -> str:
        ends = f"from {show(self.start)} to {show(self.end)}"
        if not self.is_clear:
            return f"is unclear ({show_signed(self.change)} nats per response, {ends})"
        return f"{'fell' if self.change < 0 else 'rose'} by {show(abs(self.change))} nats per response, {ends}"


@dataclass(frozen=True)
class Moved:
    """What is known of one run: both sides, and where that is read from."""

    run: Run
    chosen: Side
    rejected: Side
    source: str

    @property
    def both_fell(self) -> bool:
        return self.chosen.fell and self.rejected.fell


def displacement(runs: list[Run]) -> list[str]:
    """One sentence for each run of which both sides are known."""
    sentences = []
    for moved in filter(None, map(moved_in, runs)):
        both = "; both sides lost probability, which is likelihood displacement" if moved.both_fell else ""
        sentences.append(
            f"{moved.run.label}: the log-probability of the chosen responses {moved.chosen.in_words()}; that of the "
            f"rejected ones {moved.rejected.in_words()}{both} ({moved.source})."
        )
    return sentences


def displacement_note(runs: list[Run]) -> str:
    """The same as a caption: "Chosen −2.1, rejected −4.0 nats: both fell." With several runs each is named."""
    notes = []
    for moved in filter(None, map(moved_in, runs)):
        sides = ", ".join(
            f"{name} {show_signed(side.change)}{'' if side.is_clear else ' (unclear)'}"
            for name, side in (("chosen", moved.chosen), ("rejected", moved.rejected))
        )
        words = f"{sides} nats{': both fell' if moved.both_fell else ''}."
        notes.append(words.capitalize() if len(runs) == 1 else f"{moved.run.label}: {words}")
    return " ".join(notes)


def moved_in(run: Run) -> Moved | None:
    """Both sides of one set of pairs: the evaluation's from the base, else the logged held-out ones, else batches."""
    chosen, rejected = (_evaluated(run, side) for side in ("chosen", "rejected"))
    if chosen is not None and rejected is not None:
        return Moved(run, chosen, rejected, f"{evaluated_pairs(run)}, from the base model to the trained one")
    held_out = [_finite(run, "eval", side) for side in ("chosen", "rejected")]
    if all(len(values) >= 2 for values in held_out):
        chosen, rejected = (Side(values[0], values[-1], values[0] != values[-1]) for values in held_out)
        return Moved(run, chosen, rejected, "held-out pairs, from the first evaluation to the last")
    batches = [_finite(run, "train", side) for side in ("chosen", "rejected")]
    if all(len(values) >= 20 for values in batches):
        chosen, rejected = map(_of_batches, batches)
        return Moved(run, chosen, rejected, "training batches of other pairs, means of the first and last fifth")
    return None


def evaluated_pairs(run: Run) -> str:
    """What the evaluation's pairs are: held out by the run itself, which the evaluation records, or of some file."""
    if at(run.evaluation, "pairs", "held_out") is True:
        return "held-out pairs"
    source = text_at(run.evaluation, "pairs", "source")
    return f"pairs from {source}" if source else "pairs of the evaluation"


def _finite(run: Run, split: str, side: str) -> Values:
    return [value for _, value in run.series(split, f"{side}_logp") if value is not None]


def _evaluated(run: Run, side: str) -> Side | None:
    """One side of the evaluation's own pairs, of which it has the log-probability and its change from the base."""
    trained, change = (number(at(run.evaluation, "pairs", f"{side}_{name}")) for name in ("logp", "log_ratio"))
    return None if trained is None or change is None else Side(trained - change, trained, _is_clear(run, side))


def _is_clear(run: Run, side: str) -> bool:
    """Whether the interval over prompts of the change leaves zero out; no interval says nothing against it."""
    change = number(at(run.evaluation, "pairs", f"{side}_log_ratio"))
    return bool(change) and excludes_zero(at(run.evaluation, "pairs", "intervals", f"{side}_log_ratio")) is not False


def _of_batches(values: Values) -> Side:
    """Means of the first and of the last fifth. Each batch has other pairs, so their difference has an error."""
    size = len(values) // 5
    (start, start_error), (end, end_error) = (_mean(part) for part in (values[:size], values[-size:]))
    return Side(start, end, abs(end - start) > SURE * math.hypot(start_error, end_error))


def _mean(values: Values) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))
