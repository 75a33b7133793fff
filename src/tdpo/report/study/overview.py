"""The first screen: diversity, reward and KL of every method where methods can be compared, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from ...methods import ARMS, REFERENCE
from ...records.metric_names import DIVERSITY, KINDS, Metric, named, nats
from ..numbers import MISSING, join_words, show, show_interval
from .claims import lowered, place_of
from .frontiers import default_metric
from .strengths import Choice, held_kl, rules_of, strength_words, targets_of
from .study_reading import ArmRecord, Estimate, StudyRecord, TaskRecord

MARGIN = 0.04  # of the axis, left free on either side


@dataclass(frozen=True)
class Dot:
    """A mean with its interval on the axis of its column, in percent; `dot` is None where nothing was measured."""

    text: str
    limits: str
    dot: float | None
    left: float
    width: float


@dataclass(frozen=True)
class MethodRow:
    """`note` says what a method is that is not compared at this place, and at which strength it was run."""

    arm: str
    label: str
    note: str
    dots: list[Dot]


@dataclass(frozen=True)
class Place:
    """The methods at one place: `compared` in the order of the first column, and `beside` those that are not there."""

    words: str
    compared: list[MethodRow]
    beside: list[MethodRow]


@dataclass(frozen=True)
class Overview:
    """`lead` says by what methods are ordered, and which is first."""

    task: TaskRecord
    metrics: list[Metric]
    places: list[Place]
    lead: str


def overviews(study: StudyRecord, chosen: dict[str, Choice]) -> list[Overview]:
    """One overview for each task on which methods have a diversity or a reward."""
    made = (_overview(study, task, chosen[task.name]) for task in study.tasks)
    return [overview for overview in made if overview]


def _overview(study: StudyRecord, task: TaskRecord, choice: Choice) -> Overview | None:
    metrics = [
        metric
        for metric in (default_metric(study, task, "diversity"), named("reward_mean"), named(held_kl(study)))
        if metric and study.has(task.name, metric.key)
    ]
    rules = [rule for rule in rules_of(study) if rule == "matched" or rule.startswith("target-")]
    places = []
    leaders: list[tuple[str, str]] = []
    for rule in rules:
        compared = [arm for arm in study.arms if _is_compared(study, task, arm, choice.rules[rule].get(arm.name))]
        ranked = _ranked(study, task, compared, choice.rules[rule], metrics[0]) if metrics else []
        if not ranked:
            continue
        beside = [arm for arm in study.arms if arm not in compared]
        places.append(
            Place(
                _place_words(study, task, rule, ranked, choice),
                _rows(study, task, ranked, choice.rules[rule], metrics, notes=not targets_of(study)),
                _rows(study, task, beside, choice.rules[rule], metrics, notes=True),
            )
        )
        leaders.append((_at(rule, choice), ranked[0].label))
    return Overview(task, metrics, places, _lead(metrics[0], leaders)) if places else None


def _is_compared(study: StudyRecord, task: TaskRecord, arm: ArmRecord, strength: str | None) -> bool:
    """Whether the arm is where the others are: held at a target where others are, else trained, with a known KL."""
    if strength is None or arm.name == REFERENCE:
        return False
    if targets_of(study):
        return arm.held
    return not _is_baseline(arm) and study.estimate(task.name, arm.name, strength, held_kl(study)) is not None


def _ranked(
    study: StudyRecord, task: TaskRecord, arms: list[ArmRecord], strengths: dict[str, str], metric: Metric
) -> list[ArmRecord]:
    """The arms that have the metric, most diverse (or highest) first."""
    values = {arm.name: study.estimate(task.name, arm.name, strengths[arm.name], metric.key) for arm in arms}
    means = {name: estimate.value for name, estimate in values.items() if estimate}
    own = [arm for arm in arms if arm.name in means]
    return sorted(own, key=lambda arm: means[arm.name] if metric.lower else -means[arm.name])


def _rows(
    study: StudyRecord,
    task: TaskRecord,
    arms: list[ArmRecord],
    strengths: dict[str, str],
    metrics: list[Metric],
    *,
    notes: bool,
) -> list[MethodRow]:
    axes = [_axis(study, task, metric) for metric in metrics]
    rows = []
    for arm in arms:
        strength = strengths.get(arm.name, "")
        estimates = [study.estimate(task.name, arm.name, strength, metric.key) for metric in metrics]
        if any(estimates):
            dots = [_dot(e, m, axis) for e, m, axis in zip(estimates, metrics, axes, strict=True)]
            rows.append(MethodRow(arm.name, arm.label, strength_words(arm, strength) if notes else "", dots))
    return rows


def _axis(study: StudyRecord, task: TaskRecord, metric: Metric) -> tuple[float, float]:
    """From the least to the most of all arms and strengths, so that every place has the same axis."""
    known = [e for arm, s in study.cells if (e := study.estimate(task.name, arm.name, s, metric.key))]
    ends = [end for estimate in known for end in (estimate.value, *(estimate.limits or ()))]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = MARGIN * (high - low) or 0.5
    return low - margin, high + margin


def _dot(estimate: Estimate | None, metric: Metric, axis: tuple[float, float]) -> Dot:
    if estimate is None:
        return Dot(MISSING, "", None, 0, 0)
    left, right = (place_of(end, *axis) for end in estimate.limits or (estimate.value, estimate.value))
    text = nats(estimate.value) if metric.key.endswith("_kl") else show(estimate.value)
    return Dot(text, show_interval(estimate.limits), place_of(estimate.value, *axis), left, round(right - left, 2))


def _at(rule: str, choice: Choice) -> str:
    return f"at {_nats(rule.removeprefix('target-'))}" if rule != "matched" else ""


def _nats(text: str) -> str:
    return f"{text} nat" if float(text) == 1 else f"{text} nats"


def _place_words(study: StudyRecord, task: TaskRecord, rule: str, arms: list[ArmRecord], choice: Choice) -> str:
    """Where the methods stand and how near they came: Held at 1 nat; measured: 0.96 to 1.08."""
    metric = held_kl(study)
    found = [study.estimate(task.name, arm.name, choice.rules[rule][arm.name], metric) for arm in arms]
    measured = [estimate.value for estimate in found if estimate]
    kl = lowered(named(metric).title)
    between = f"; measured: {nats(min(measured))} to {nats(max(measured))} nats" if measured else ""
    if rule != "matched":
        return f"Held at a {kl} of {_nats(rule.removeprefix('target-'))}{between}"
    near = (
        f"At the strength whose {kl} is nearest to {show(choice.target)} nats" if choice.target else "At one strength"
    )
    return f"{near}{between}"


def _lead(metric: Metric, leaders: list[tuple[str, str]]) -> str:
    """In order of diversity: of those held at a target, A has the highest mean at 1 nat, and B at 2 nats."""
    most = "lowest" if metric.lower else "highest"
    places_of: dict[str, list[str]] = {}
    for place, label in leaders:
        places_of.setdefault(label, []).append(place)
    parts = [
        f"{label} has the {most} mean {join_words([place for place in places if place])}".rstrip()
        for label, places in places_of.items()
    ]
    held = "of those held at a target, " if any(place for place, _ in leaders) else ""
    return f"In order of {lowered(metric.title)}: {held}{join_words(parts)}."


def in_words(study: StudyRecord, made: list[Overview]) -> str:
    """What the words of the tables at the top mean."""
    kl = held_kl(study)
    sides = ("the reference’s", "the policy") if kl == "forward_kl" else ("a method’s own", "the reference")
    words = [
        f"The {lowered(named(kl).title)} is how far {sides[0]} responses are from what {sides[1]} would say, in nats "
        "(the unit of natural logarithms; 0 is no distance)."
    ]
    if targets_of(study):
        words.append("A target is the value at which training held it.")
    words += [
        f"{metric.title.split(',')[0]} is taken {KINDS[prefix]}{_good_from(study) if prefix == 'gated_' else ''}."
        for metric in dict.fromkeys(overview.metrics[0] for overview in made)
        if (prefix := next((p for p in ("gated_", "across_") if metric.key.startswith(p)), "")) or metric in DIVERSITY
    ]
    words += [f"{arm.label} is {arm.what}." for arm in study.arms if _is_baseline(arm) and arm.what]
    return " ".join(words)


def _good_from(study: StudyRecord) -> str:
    thresholds = {task.facts.threshold for task in study.tasks}
    least = thresholds.pop() if len(thresholds) == 1 else None
    return "" if least is None else f", those with a reward of at least {show(least)}"


def _is_baseline(arm: ArmRecord) -> bool:
    return arm.name in ARMS and ARMS[arm.name].family == "baseline"
