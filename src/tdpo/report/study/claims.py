"""The claims as cards: a verdict, and each part as a small forest plot that is a table as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...records.dotted import at, text_at
from ...records.metric_names import named
from ..numbers import MINUS, MISSING, interval, number, show, show_interval, show_signed
from .study_reading import StudyRecord

VERDICTS = ("supported", "contradicted", "undecided")
MARGIN = 0.06  # of the axis, left free on either side
NEAR = 36  # percent of the axis


@dataclass(frozen=True)
class ForestRow:
    """A value with its interval on the part's axis. `dot`, `left` and `width` are percentages of the axis."""

    label: str
    text: str
    limits: str
    note: str
    mean: bool
    dot: float | None
    left: float
    width: float


@dataclass(frozen=True)
class Part:
    """`zero` is where zero stands on the axis, in percent; `ends` are the axis' ends in words (empty: not said)."""

    text: str
    measure: str
    verdict: str
    rows: list[ForestRow]
    zero: float
    ends: tuple[str, str]
    primary: bool

    @property
    def measured(self) -> bool:
        return any(row.dot is not None for row in self.rows)


@dataclass(frozen=True)
class Claim:
    id: str
    text: str
    verdict: str
    why: str
    parts: list[Part]

    @property
    def primary(self) -> list[Part]:
        """The comparisons that decide."""
        return [part for part in self.parts if part.primary]

    @property
    def secondary(self) -> list[Part]:
        return [part for part in self.parts if not part.primary]


def read_claims(study: StudyRecord) -> list[Claim]:
    listed = study.claims.get("claims")
    claims = []
    for position, entry in enumerate(listed if isinstance(listed, list) else [], 1):
        if isinstance(entry, dict):
            parts = [_part(part) for part in entry.get("parts") or [] if isinstance(part, dict)]
            name = str(entry.get("id") or position)
            claims.append(Claim(name, text_at(entry, "text"), _verdict(entry), text_at(entry, "why"), parts))
    return claims


def _verdict(entry: dict[str, Any]) -> str:
    verdict = text_at(entry, "verdict")
    return verdict if verdict in VERDICTS else "undecided"


def _part(part: dict[str, Any]) -> Part:
    tasks = [task for task in part.get("tasks") or [] if isinstance(task, dict)]
    entries = [(text_at(task, "task") or "task", task, False) for task in tasks] + [("Mean over tasks", part, True)]
    low, high = axis_of([entry for _, entry, _ in entries])
    matched = text_at(part, "matched")
    rows = [_row(label, entry, mean, low, high, matched) for label, entry, mean in entries]
    unit = text_at(part, "unit")
    metric = named(text_at(part, "metric"))
    words = [f"Difference in {lowered(metric.title)}" if metric.key else "Difference", unit]
    words.append("less of it is more diverse" if metric.lower else "")
    words.append(f"at equal {lowered(named(matched).title)}" if matched else "")
    measure = ", ".join(word for word in words if word)
    primary = part.get("primary") is not False
    return Part(
        text_at(part, "text"), measure, _verdict(part), rows, place_of(0.0, low, high), ends_of(low, high), primary
    )


def lowered(title: str) -> str:
    """A title inside a sentence: reverse KL, self-BLEU; EAD stays."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def ends_of(low: float, high: float) -> tuple[str, str]:
    """The axis' ends in words, but none where the zero stands too near to be read beside it."""
    zero = place_of(0.0, low, high)
    left, right = (f"{value:+.1g}".replace("-", MINUS) for value in (low, high))
    return (left if zero > NEAR else "", right if zero < 100 - NEAR else "")


def axis_of(entries: list[dict[str, Any]]) -> tuple[float, float]:
    """From the lowest to the highest limit, zero included, with a margin."""
    ends = [
        value for entry in entries for key in ("value", "low", "high") if (value := number(entry.get(key))) is not None
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if low == high:
        low, high = -1.0, 1.0
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def place_of(value: float, low: float, high: float) -> float:
    """Where the value stands on the axis, in percent."""
    return round(100 * (value - low) / (high - low), 2)


def _row(label: str, entry: dict[str, Any], mean: bool, low: float, high: float, matched: str) -> ForestRow:
    value = number(entry.get("value"))
    limits = interval([entry.get("low"), entry.get("high")])
    span = interval(at(entry, "range"))
    note = f"at {show(span[0])} to {show(span[1])}" if span and matched else ""
    if value is None:
        return ForestRow(label, MISSING, "", note or "not measured", mean, None, 0, 0)
    left, right = (place_of(limit, low, high) for limit in limits or (value, value))
    text = show_signed(value)
    return ForestRow(
        label, text, show_interval(limits, show), note, mean, place_of(value, low, high), left, round(right - left, 2)
    )


def tally(claims: list[Claim]) -> str:
    """One sentence on all verdicts: Of 3 claims 1 is supported, 1 is contradicted and 1 is undecided."""
    counts = [(verdict, sum(claim.verdict == verdict for claim in claims)) for verdict in VERDICTS]
    words = [f"{count} {'is' if count == 1 else 'are'} {verdict}" for verdict, count in counts if count]
    sentence = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"Of {len(claims)} claims {sentence}." if len(claims) > 1 else f"The claim {words[0].partition(' ')[2]}."
