"""Training curves: what was logged at each step, several runs over each other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .curve_kinds import GROUPS, Curve, Part
from .displacement import displacement, displacement_note
from .drawing import Figure, base_layout, color, plot_text, symbol
from .numbers import MISSING, join_words, show
from .run import Run

MAX_POINTS = 400  # of one line; fewer where more than four runs share the file
SMOOTH_FROM = 60
TABLE_ROWS = 12
Points = list[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One metric of one run, split and side."""

    run: Run
    split: str
    part: Part
    points: Points

    @property
    def side(self) -> str:
        return self.part.side

    @property
    def name(self) -> str:
        one = " (one response a prompt)" if self.run.on_own_responses else ""
        held_out = f"held-out{one}" if self.split == "eval" else ""
        return ", ".join(part for part in (self.run.label, self.side, held_out) if part)


@dataclass(frozen=True)
class CurveGroup:
    """Figures under one heading; `sentences` are what the numbers say beyond the drawing."""

    title: str
    figures: list[Figure]
    sentences: list[str]


def curve_groups(runs: list[Run]) -> list[CurveGroup]:
    """The groups of figures for which at least one run logged something."""
    groups = []
    for title, curves in GROUPS.items():
        figures = [figure for curve in curves if (figure := _figure(curve, runs))]
        sentences = displacement(runs) if any(curve.key == "logp" for curve in curves) else []
        if any(curve.key == "forward_kl" for curve in curves):
            sentences = moving_references(runs)
        if figures:
            groups.append(CurveGroup(title, figures, sentences))
    return groups


def moving_references(runs: list[Run]) -> list[str]:
    """What the KLs of training are to, where that is not the start."""
    labels = [run.label for run in runs if run.reference_moves]
    if not labels:
        return []
    who = "" if len(runs) == 1 else f" of {join_words(labels)}"
    return [
        f"The reference{who} followed the policy (online.reference_update): these KLs are to the reference as it was "
        "at each update, and fall where it moves. The evaluation’s are to the start."
    ]


def _figure(curve: Curve, runs: list[Run]) -> Figure | None:
    candidates = [
        Line(run, split, part, run.series(split, part.key))
        for run in runs
        for split in ("train", "eval")
        for part in curve.parts_of(run)
    ]
    lines = [line for line in candidates if any(value is not None for _, value in line.points)]
    if not lines:
        return None
    limit = max(MAX_POINTS * 4 // max(len(runs), 4), 2)
    layout = base_layout("update")
    if curve.axis == "share":
        layout["yaxis"] |= {"tickformat": ".0%", "autorangeoptions": {"minallowed": -0.04, "maxallowed": 1.04}}
    if curve.axis == "from zero":
        layout["yaxis"] |= {"rangemode": "tozero"}
    return Figure(
        id=f"curve-{curve.key}",
        title=curve.title,
        unit=curve.unit,
        note=_note(curve, lines, runs),
        alt=f"{curve.title} by update. {' '.join(map(_in_words, lines))}",
        heads=["Update", *(line.name for line in lines)],
        rows=_table(lines),
        data=[trace for line in lines for trace in _traces(line, limit)],
        layout=layout,
    )


def _note(curve: Curve, lines: list[Line], runs: list[Run]) -> str:
    if curve.key == "logp":
        return displacement_note(runs)
    dotted = curve.note_on_dotted if any(line.part.dash == "dot" for line in lines) else ""
    return f"{curve.note} {dotted}".strip()


def _traces(line: Line, limit: int) -> list[dict[str, Any]]:
    """The line; for a long training series the logged values faintly and their running mean on top."""
    tint, points = color(line.run.index), thinned(line.points, limit)
    stroke = {"color": tint, "width": 2, "dash": line.part.dash}
    common = {"type": "scatter", "meta": {"run": line.run.index}, "connectgaps": False, "mode": "lines"}
    if line.split == "eval":
        mark = f"{symbol(line.run.index)}{'-open' if line.part.dash == 'dot' else ''}"
        look = {"mode": "lines+markers", "marker": {"color": tint, "size": 7, "symbol": mark}}
        return [{**common, **look, **_xy(points), "line": {**stroke, "width": 1}, **_hover(line.name)}]
    if len(line.points) < SMOOTH_FROM:
        alone = sum(value is not None for _, value in points) == 1
        look = {"mode": "lines+markers", "marker": {"color": tint, "size": 6}} if alone else {}
        return [{**common, **look, **_xy(points), "line": stroke, **_hover(line.name)}]
    faint = {"line": {**stroke, "width": 1}, "opacity": 0.28, "hoverinfo": "skip"}
    smooth = thinned(running_mean(line.points), limit)
    return [
        {**common, **_xy(points), **faint},
        {**common, **_xy(smooth), "line": stroke, **_hover(f"{line.name}, running mean")},
    ]


def _xy(points: Points) -> dict[str, Any]:
    return {"x": [_rounded(step) for step, _ in points], "y": [_rounded(value) for _, value in points]}


def _rounded(value: float | None) -> float | int | None:
    """Six significant digits: more than a screen shows, and half the bytes."""
    if value is None:
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}")


def _hover(name: str) -> dict[str, str]:
    return {"hovertemplate": f"{plot_text(name, 60)}<br>update %{{x}}: %{{y:.4~g}}<extra></extra>"}


def running_mean(points: Points) -> Points:
    """The mean over a centred window of about a twentieth of the series; values that are not finite are left out."""
    half = max(1, len(points) // 40)
    sums = list(accumulate((value or 0.0 for _, value in points), initial=0.0))
    counts = list(accumulate((value is not None for _, value in points), initial=0))
    smooth: Points = []
    for position, (step, value) in enumerate(points):
        low, high = max(0, position - half), min(len(points), position + half + 1)
        mean = (sums[high] - sums[low]) / max(counts[high] - counts[low], 1)
        smooth.append((step, None if value is None else mean))
    return smooth


def thinned(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: means over equal stretches of a longer series."""
    if len(points) <= limit:
        return points
    result: Points = []
    for stretch_index in range(limit):
        stretch = points[len(points) * stretch_index // limit : len(points) * (stretch_index + 1) // limit]
        values = [value for _, value in stretch if value is not None]
        result.append((stretch[len(stretch) // 2][0], sum(values) / len(values) if values else None))
    return result


def _in_words(line: Line) -> str:
    points = [(step, value) for step, value in line.points if value is not None]
    (first, start), (last, end) = points[0], points[-1]
    if first == last:
        return f"{line.name}: {show(start)} at update {show(int(first))}."
    return f"{line.name}: from {show(start)} at update {show(int(first))} to {show(end)} at update {show(int(last))}."


def _table(lines: list[Line]) -> list[list[str]]:
    """The values at about a dozen updates, the first and the last among them, those with held-out values first."""
    steps = sorted({step for line in lines for step, _ in line.points})
    held_out = sorted({step for line in lines if line.split == "eval" for step, _ in line.points})
    candidates = held_out or steps
    count = min(TABLE_ROWS, len(candidates))
    spread_steps = {candidates[round(i * (len(candidates) - 1) / max(count - 1, 1))] for i in range(count)}
    lookup = [dict(line.points) for line in lines]
    rows = []
    for step in sorted(spread_steps | {steps[0], steps[-1]}):
        rows.append(
            [show(int(step)), *(MISSING if values.get(step) is None else show(values[step]) for values in lookup)]
        )
    return rows
