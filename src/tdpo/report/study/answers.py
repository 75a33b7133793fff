"""The answers to a study's questions: dots with intervals for each contrast, verdicts in words, points of each arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...records.dotted import dict_at, text_at
from ...records.metric_names import counted as count_of
from ...records.metric_names import named, nats
from ..numbers import MISSING, counted, join_words, number, show, show_interval, show_share, show_signed
from .claims import axis_of, ends_of, place_of
from .study_reading import StudyRecord, seeds_of

VERDICTS = ("difference", "no relevant difference", "undecided")
PARTS = {"within": " within prompts", "between": " between prompts"}


@dataclass(frozen=True)
class AnswerRow:
    """One comparison: where (`place` leaves out the task where there is one only), its number and interval on the
    question's axis (`dot`, `left`, `width` in percent; `inner` is the 90 % interval, (left, width)), verdict, which way
    a difference goes, the sentence, and whether the arms met (None: not asked)."""

    where: str
    place: str
    text: str
    limits: str
    verdict: str
    way: str
    sentence: str
    met: bool | None
    p: str
    dot: float | None
    left: float
    width: float
    inner: tuple[float, float] | None


@dataclass(frozen=True)
class Question:
    """`band` is the place of what would not matter, (left, width) in percent of the axis, None where nobody said."""

    number: int
    text: str
    plus: str
    minus: str
    measure: str
    primary: bool
    rows: list[AnswerRow]
    zero: float
    ends: tuple[str, str]
    band: tuple[float, float] | None


@dataclass(frozen=True)
class ArmPoint:
    """An arm at a target: the metric on the axis of its table, and how far it went."""

    arm: str
    label: str
    text: str
    limits: str
    forward_kl: str
    reverse_kl: str
    reward: str
    share: str
    dot: float
    left: float
    width: float


@dataclass(frozen=True)
class PointTable:
    """All arms on a task at one target, most of the metric first, then those that are held at none."""

    task: str
    target: str
    place: str
    metric: str
    rows: list[ArmPoint]
    ends: tuple[str, str]


@dataclass(frozen=True)
class Answers:
    questions: list[Question]
    points: list[PointTable]
    unknown: list[str]
    summary: str

    @property
    def primary(self) -> list[tuple[Question, list[AnswerRow]]]:
        """What the top of the page lists: the primary questions with their comparisons, or all where none is."""
        questions = [question for question in self.questions if question.primary] or self.questions
        return [(question, question.rows) for question in questions]

    @property
    def by_metric(self) -> list[tuple[str, list[PointTable]]]:
        metrics = dict.fromkeys(table.metric for table in self.points)
        return [(metric, [table for table in self.points if table.metric == metric]) for metric in metrics]


def read_answers(study: StudyRecord) -> Answers | None:
    """The answers of a study that has questions; None for one without."""
    listed = study.answers.get("questions")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    if not entries:
        return None
    several = len(study.tasks) > 1
    questions = [_question(place, entry, several) for place, entry in enumerate(entries, 1)]
    return Answers(questions, _tables(study.answers), [*_unknown(questions), *_beyond(study)], _summary(questions))


def _question(place: int, entry: dict[str, Any], several: bool) -> Question:
    answers = [answer for answer in entry.get("answers") or [] if isinstance(answer, dict)]
    least = number(entry.get("smallest_effect"))
    low, high = axis_of([*answers, *([{"low": -least, "high": least}] if least else [])])
    plus, minus = _sides(entry)
    metric = named(text_at(entry, "metric"))
    part = PARTS.get(text_at(entry, "component"), "")
    words = [f"{metric.title}{part}", metric.unit, "less of it is more diverse" if metric.lower else ""]
    band = None if not least else (place_of(-least, low, high), round(200 * least / (high - low), 2))
    return Question(
        place,
        text_at(entry, "text"),
        plus,
        minus,
        ", ".join(word for word in words if word),
        entry.get("primary") is True,
        [_row(answer, low, high, plus, minus, several) for answer in answers],
        place_of(0.0, low, high),
        ends_of(low, high),
        band,
    )


def _sides(entry: dict[str, Any]) -> tuple[str, str]:
    sides = entry.get("sides")
    if not isinstance(sides, list) or len(sides) != 2:
        return "", ""
    return str(sides[0]), str(sides[1])


def _row(answer: dict[str, Any], low: float, high: float, plus: str, minus: str, several: bool) -> AnswerRow:
    verdict = text_at(answer, "verdict")
    met = dict_at(answer, "meeting").get("met")
    value = number(answer.get("value"))
    ends = (number(answer.get("low")), number(answer.get("high")))
    limits = None if None in ends else ends
    holm, own = number(answer.get("p_holm")), number(answer.get("p"))
    p = "" if own is None else f"p {_p(own)}" if holm is None else f"adjusted p {_p(holm)}"
    left, right = (place_of(end, low, high) for end in (limits or (value or 0.0, value or 0.0)))  # type: ignore[arg-type]
    inner = [end for name in ("low_90", "high_90") if (end := number(answer.get(name))) is not None]
    places = [place_of(end, low, high) for end in inner]
    return AnswerRow(
        _where(answer),
        _where(answer, with_task=several),
        MISSING if value is None else show_signed(value),
        show_interval(list(limits)) if limits else "",
        verdict if verdict in VERDICTS else "undecided",
        f"{plus} is {'higher' if value > 0 else 'lower'}" if verdict == "difference" and value and minus else "",
        text_at(answer, "sentence"),
        met if isinstance(met, bool) else None,
        p,
        None if value is None else place_of(value, low, high),
        left,
        round(right - left, 2),
        (places[0], round(places[1] - places[0], 2)) if len(places) == 2 else None,
    )


def _where(entry: dict[str, Any], *, with_task: bool = True) -> str:
    target = number(entry.get("target"))
    task = text_at(entry, "task") or "task"
    if target is None:
        return task
    return f"{task}, {count_of(target, 'nat')}" if with_task else count_of(target, "nat")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _tables(answers: dict[str, Any]) -> list[PointTable]:
    listed = answers.get("points")
    points = [point for point in listed if isinstance(point, dict)] if isinstance(listed, list) else []
    points = [point for point in points if number(point.get("value")) is not None]
    keys = dict.fromkeys((text_at(p, "task"), text_at(p, "metric"), text_at(p, "component")) for p in points)
    tables = []
    for task, metric, component in keys:
        own = [
            p
            for p in points
            if (text_at(p, "task"), text_at(p, "metric"), text_at(p, "component")) == (task, metric, component)
        ]
        targets = sorted({target for p in own if (target := number(p.get("target"))) is not None})
        free = [p for p in own if number(p.get("target")) is None]
        levels: list[float | None] = [*targets] or [None]
        for target in levels:
            held = [p for p in own if target is not None and number(p.get("target")) == target]
            title = f"{named(metric).title}{PARTS.get(component, '')}"
            tables.append(_table(task, "" if target is None else f"{target:g}", title, _ranked(held) + _ranked(free)))
    return tables


def _ranked(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(points, key=lambda point: -(number(point.get("value")) or 0.0))


def _table(task: str, target: str, metric: str, points: Sequence[dict[str, Any]]) -> PointTable:
    values = [v for p in points for key in ("value", "low", "high") if (v := number(p.get(key))) is not None]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    rows = [_point(point, low, high) for point in points]
    place = f"{task}, held at {count_of(float(target), 'nat')}" if target else task
    return PointTable(task, target, place, metric, rows, (show(low), show(high)))


def _point(point: dict[str, Any], low: float, high: float) -> ArmPoint:
    value = number(point.get("value")) or 0.0
    ends = [number(point.get(key)) for key in ("low", "high")]
    left, right = (place_of(value if end is None else end, low, high) for end in ends)
    forward, reverse = (number(point.get(f"{kl}_kl")) for kl in ("forward", "reverse"))
    return ArmPoint(
        text_at(point, "arm").partition("@")[0],
        text_at(point, "label") or text_at(point, "arm"),
        show(value),
        show_interval(ends),
        MISSING if forward is None else nats(forward),
        MISSING if reverse is None else nats(reverse),
        show(number(point.get("reward_mean"))),
        show_share(number(point.get("share"))),
        place_of(value, low, high),
        left,
        round(right - left, 2),
    )


def _unknown(questions: Sequence[Question]) -> list[str]:
    """What the study leaves open, a sentence for each question: where there is no number or no verdict, and where the
    methods did not meet."""
    sentences = []
    for question in questions:
        unmeasured = [row.where for row in question.rows if row.dot is None]
        undecided = [row for row in question.rows if row.dot is not None and row.verdict == "undecided"]
        apart = [row.where for row in question.rows if row.met is False]
        parts = [f"not measured on {'; '.join(unmeasured)}"] if unmeasured else []
        if undecided:
            where = "; ".join(f"{row.where} {row.limits or '(no interval)'}" for row in undecided)
            parts.append(f"undecided on {where}")
        if apart:
            parts.append(f"not at equal KL, as the methods did not meet, on {'; '.join(apart)}")
        if parts:
            sentences.append(f"{question.text} It is {', and '.join(parts)}.")
    return sentences


def _beyond(study: StudyRecord) -> list[str]:
    """What no verdict reaches, in a sentence: other tasks, models, seeds and prompts than those of the study."""
    tasks, model = [task.name for task in study.tasks], text_at(study.about, "model")
    sizes = [int(size) for task in study.tasks if (size := number(task.facts.prompts)) is not None]
    parts = [f"{counted(len(tasks), 'task')} ({join_words(tasks)})", counted(len(seeds_of(study)), "seed")]
    if model:
        parts.insert(1, f"one model ({model})")
    if sizes:
        least, most = min(sizes), max(sizes)
        parts.append(f"{least if least == most else f'{least} to {most}'} prompts a task")
    return [f"The answers are about {join_words(parts)}. Nothing is known beyond these."]


def _summary(questions: Sequence[Question]) -> str:
    """One sentence on the verdicts: Of 4 primary comparisons 1 shows a difference, 2 are undecided …"""
    rows = [row for question in questions if question.primary for row in question.rows]
    kind = "primary comparison"
    if not rows:
        rows, kind = [row for question in questions for row in question.rows], "comparison"
    shows = {"difference": ("shows a difference", "show a difference"),
             "no relevant difference": ("shows no relevant difference", "show no relevant difference"),
             "undecided": ("is undecided", "are undecided")}  # fmt: skip
    counts = [(verdict, sum(row.verdict == verdict for row in rows)) for verdict in VERDICTS]
    words = [f"{count} {shows[verdict][count != 1]}" for verdict, count in counts if count]
    apart = sum(row.met is False for row in rows)
    ending = f"; in {apart} the methods did not meet" if apart else ""
    return f"Of {counted(len(rows), kind)} {', '.join(words)}{ending}." if words else "No question was answered."
