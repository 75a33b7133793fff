"""What every figure is made of: a plain Plotly dictionary, with words and a table that say the same.

Only marks carry colours, and those are readable on white and on black alike; text, axes and grid take theirs from the
stylesheet, so that dark mode and print need no redrawing.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .numbers import MISSING, shorten
from .results import BASE_COLOR, Metric

# Told apart by people of every colour vision, and at least 3:1 against white and near-black (a test computes both).
RUN_COLORS = ("#2c7fb8", "#d55e00", "#8e44d6", "#8f5a45", "#2f9e44", "#cf5fa8")
BASE_GREY = "#838b95"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


@dataclass(frozen=True)
class Figure:
    """A Plotly figure, its title, a line of explanation, its content in words and as a table."""

    id: str
    title: str
    unit: str
    note: str
    alt: str
    heads: list[str]
    rows: list[list[str]]
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        return {"id": self.id, "data": self.data, "layout": self.layout}


def color(index: int) -> str:
    """A run's colour; beyond the palette colours repeat and the symbol tells runs apart."""
    return BASE_GREY if index == BASE_COLOR else RUN_COLORS[index % len(RUN_COLORS)]


def translucent(index: int, opacity: float) -> str:
    """`color`, to fill an area with. Plotly's validator knows no hexadecimal colours with opacity before 6.1."""
    red, green, blue = bytes.fromhex(color(index).removeprefix("#"))
    return f"rgba({red},{green},{blue},{opacity:g})"


def symbol(index: int) -> str:
    return "circle" if index == BASE_COLOR else SYMBOLS[(index + index // len(RUN_COLORS)) % len(SYMBOLS)]


def plot_text(text: str, length: int = 22) -> str:
    """Text for Plotly, which reads a small markup of its own: escaped, and short enough for an axis."""
    return html.escape(shorten(text, length), quote=False).replace("%{", "% {")


def base_layout(x_title: str = "", y_title: str = "", *, height: int = 240) -> dict[str, Any]:
    axis = {
        "automargin": True,
        "zeroline": False,
        "showline": False,
        "ticklen": 4,
        "nticks": 6,
        "exponentformat": "e",
        "fixedrange": False,
    }
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8, "pad": 2},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "#20252b",
            "bordercolor": "#20252b",
            "font": {"color": "#ffffff", "size": 12},
        },
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "xaxis": {**axis, "title": {"text": plot_text(x_title, 40), "font": {"size": 12}, "standoff": 6}},
        "yaxis": {**axis, "title": {"text": plot_text(y_title, 40), "font": {"size": 12}, "standoff": 6}},
    }


NARROW = 0.01  # of its size: what a range has at least
ROW_HEIGHT, AXIS_HEIGHT = 38, 36  # of figures of dots, in pixels


@dataclass(frozen=True)
class Point:
    """One estimate with its interval."""

    label: str
    color: int
    value: float
    limits: tuple[float, float] | None
    hollow: bool = False


def error_bar(limits: Iterable[tuple[float, float] | None], values: Iterable[float], tint: str) -> dict[str, Any]:
    """Plotly's asymmetric error bars from absolute limits; a value without limits gets none."""
    ranges = [(value, pair or (value, value)) for value, pair in zip(values, limits, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(high - value, 0.0) for value, (_, high) in ranges],
        "arrayminus": [max(value - low, 0.0) for value, (low, _) in ranges],
        "color": tint,
        "thickness": 2,
        "width": 0,
    }


def _extent(points: list[Point]) -> list[float]:
    return [value for point in points for value in (point.value, *(point.limits or ()))]


def readable_range(key: str, values: Iterable[float]) -> list[float] | None:
    """The range of an axis where Plotly's own reads badly, None elsewhere.

    Values that differ in late digits alone get a range of 2 %, or their ticks would be long numbers that overlap.
    The axis of a share of distinct words or word pairs, which is at most 1, ends there.
    """
    known = list(values)
    low, high = min(known), max(known)
    size = max(abs(low), abs(high))
    is_narrow, ends_at_1 = high - low < NARROW * size, key.startswith("distinct_")
    if not (is_narrow or ends_at_1):
        return None
    margin = NARROW * size if is_narrow else 0.1 * (high - low)
    low, high = low - margin, high + margin
    return [low, min(high, 1 + 0.05 * (1 - low))] if ends_at_1 else [low, high]


def dot_figure(
    id: str, metric: Metric, points: list[Point], *, note: str = "", line: float | None = None
) -> Figure | None:
    """Dots with intervals, one line each, the first on top; None when no point is known.

    `line` is a value to compare with, drawn dotted. Shares have the whole range from 0 to 100 %, and KLs start at 0.
    """
    if not points:
        return None
    layout = base_layout(height=AXIS_HEIGHT + ROW_HEIGHT * len(points))
    layout["xaxis"] |= {"nticks": 4, "tickangle": 0}
    layout["margin"] |= {"b": AXIS_HEIGHT - layout["margin"]["t"]}  # Plotly finds no room for labels below one row
    layout["yaxis"] |= {
        "tickvals": list(range(len(points))),
        "ticktext": [plot_text(point.label) for point in points],
        "range": [len(points) - 0.45, -0.75],
        "showgrid": False,
        "fixedrange": True,
    }
    if metric.share:
        layout["xaxis"] |= {"tickformat": ".0%", "range": [-0.03, 1.03], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    if metric.key.endswith("_kl") or line == 0:  # the line is there to be compared with
        layout["xaxis"] |= {"rangemode": "tozero"}
    elif not metric.share and (ends := readable_range(metric.key, _extent(points))):
        layout["xaxis"] |= {"range": ends}
    if line is not None:
        shape = {"type": "line", "x0": line, "x1": line, "yref": "paper", "y0": 0, "y1": 1}
        layout |= {"shapes": [{**shape, "line": {"width": 1, "dash": "dot"}, "layer": "between"}]}
    data = []
    for position, point in enumerate(points):
        tint, text, limits = color(point.color), metric.show(point.value), metric.show_interval(point.limits)
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [point.value],
                "y": [position],
                "text": [text],
                "textposition": "top center",
                "marker": {"color": tint, "symbol": symbol(point.color) + ("-open" * point.hollow), "size": 10},
                "error_x": error_bar([point.limits], [point.value], tint),
                "hovertemplate": f"{plot_text(point.label, 40)}: {text} {limits}<extra></extra>",
                "cliponaxis": False,
            }
        )
    rows = [[point.label, metric.show(point.value), metric.show_interval(point.limits) or MISSING] for point in points]
    alt = f"{metric.title}. " + " ".join(f"{label}: {value} {limits}." for label, value, limits in rows)
    return Figure(id, metric.title, metric.unit, note, alt, ["Model", metric.title, "Interval"], rows, data, layout)
