"""Answers in plain sentences: what differs, by how much, how sure, whether the arms met, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Contrast
from ..methods import ARMS
from ..records.metric_names import counted, named
from .contrast_meeting import MEETING
from .contrast_tables import KLS
from .contrasts import DIFFERENCE, NO_DIFFERENCE, TOST, Answer

PARTS = {None: "", "within": " within prompts", "between": " between prompts"}


def sentence(answer: Answer) -> str:
    """The answer in one paragraph."""
    where = answer.task if answer.target is None else f"{answer.task}, {counted(answer.target, 'nat')}"
    if answer.mean is None:
        return f"{where}: not measured: {answer.reason}."
    parts = [_what(answer), _verdict(answer), *_met(answer), *_used(answer), *_adjusted(answer)]
    return f"{where}: {' '.join(parts)}"


def side_names(contrast: Contrast) -> tuple[str, str]:
    """What is compared with what; of weights that are no two means, the arms with signs."""
    if contrast.weights:
        terms = " ".join(f"{'−' if w < 0 else '+'} {_times(w)}{label(arm)}" for arm, w in contrast.weights.items())
        return terms.removeprefix("+ "), ""
    return _mean_of(contrast.plus), _mean_of(contrast.minus)


def label(arm: str) -> str:
    """What people call an arm of a question."""
    name, at, strength = arm.partition("@")
    kind = ARMS.get(name)
    public = name if kind is None else kind.label
    return f"{public} at {strength}" if at else public


def _times(weight: float) -> str:
    return "" if abs(weight) == 1 else f"{abs(weight):g} × "


def _mean_of(arms: Sequence[str]) -> str:
    names = [label(arm) for arm in arms]
    return names[0] if len(names) == 1 else f"the mean of {', '.join(names[:-1])} and {names[-1]}"


def _what(answer: Answer) -> str:
    assert answer.mean is not None
    contrast = answer.contrast
    metric = named(contrast.metric)
    title = metric.title[:1].lower() + metric.title[1:] if not metric.title[1:2].isupper() else metric.title
    plus, minus = side_names(contrast)
    limits = answer.mean.interval()
    sure = "no interval" if limits is None else f"95 % interval {signed(limits[0])} to {signed(limits[1])}"
    difference = f"{signed(answer.mean.value)} in {title}{PARTS[contrast.component]} ({sure})"
    against = f"{plus} against {minus}" if minus else plus
    less = ", where less is more diverse" if metric.lower else ""
    return f"{against}: {difference}{less}."


def _verdict(answer: Answer) -> str:
    assert answer.mean is not None
    least, p = answer.contrast.smallest_effect, answer.p_value
    if p is None:
        return f"Undecided: {answer.reason}."
    adjusted = answer.p_holm if answer.contrast.primary else p
    shown = _p(p) if answer.p_holm is None else f"{_p(p)}, adjusted {_p(answer.p_holm)}"
    narrow = answer.mean.interval(TOST)
    if answer.verdict == NO_DIFFERENCE:
        assert narrow is not None
        also = " It differs from zero, but by less than would matter." if adjusted is not None and p <= 0.05 else ""
        return f"No relevant difference: the 90 % interval lies within ±{least:g} ({shown}).{also}"
    if answer.verdict == DIFFERENCE:
        return f"A difference ({shown})."
    limits = answer.mean.interval()
    assert limits is not None
    if limits[0] > 0 or limits[1] < 0:
        return (
            f"Undecided ({shown}): its own interval leaves out zero, but not after the adjustment for all comparisons."
        )
    would_matter = "" if least is None else f", and also one of {least:g}, which would matter"
    return f"Undecided ({shown}): the data fit no difference at all{would_matter}."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def signed(value: float) -> str:
    """A difference with its sign, three decimals where these say enough."""
    if abs(value) < 1e-9:
        return "0"
    return (f"{value:+.3f}" if 0.01 <= abs(value) < 100 else f"{value:+.2g}").replace("-", "−")


def _met(answer: Answer) -> list[str]:
    meeting = answer.meeting
    if meeting is None or answer.target is None:
        return []
    held = answer.contrast.held_kl
    of_sides = [
        f"{kl.replace('_kl', '').replace('_', ' ')} KL {_nats(meeting.sides['plus'][kl])} and "
        f"{_nats(meeting.sides['minus'][kl])}"
        for kl in sorted(KLS, key=lambda kl: kl != held)
    ]
    both = f"({'; '.join(of_sides)} nats)"
    if meeting.met is None:
        return [f"Only one side is held at the target {both}."] if meeting.on_target else [f"Not on target {both}."]
    if not meeting.met:
        known = [kl for arm in meeting.arms.values() if (kl := arm[held]) is not None]
        span = f": {held.replace('_kl', '')} KLs from {min(known):.3g} to {max(known):.3g}" if known else ""
        return [f"The arms did not meet{span}, so this is no comparison at equal KL {both}."]
    off = "" if meeting.on_target else f", though more than {100 * MEETING:.0f} % from the target"
    return [f"The arms met{off} {both}."]


def _nats(kl: float | None) -> str:
    return "unknown" if kl is None else f"{kl:.3g}"


def _used(answer: Answer) -> list[str]:
    mean = answer.mean
    if mean is None or mean.share >= 0.995:
        return []
    return [f"{100 * mean.share:.0f} % of the prompts count: those with a value in all of its arms, in the same seed."]


def _adjusted(answer: Answer) -> list[str]:
    if answer.adjusted is None:
        return []
    limits = answer.adjusted.interval()
    other = KLS[1 - KLS.index(answer.contrast.held_kl)].replace("_kl", "")
    sure = "" if limits is None else f" ({signed(limits[0])} to {signed(limits[1])})"
    return [f"At equal {other} KL, by a linear adjustment: {signed(answer.adjusted.value)}{sure}."]
