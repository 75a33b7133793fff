"""Figures of what the evaluation found: dots with intervals, reward against its cost, the spread of rewards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ..records.dotted import at
from .drawing import (
    Figure,
    Point,
    base_layout,
    color,
    dot_figure,
    error_bar,
    plot_text,
    readable_range,
    symbol,
    translucent,
)
from .numbers import interval, number, show, show_interval
from .results import (
    BASE_COLOR,
    GENERATION_METRICS,
    PAIR_METRICS,
    Column,
    Metric,
    generation_interval,
    pair_interval,
    reward_name,
)
from .run import Run


def result_figures(columns: list[Column], runs: list[Run]) -> list[Figure]:
    """Base against trained, one small figure for each number worth a look."""
    reward = reward_name(runs)
    titles = {metric.key: metric for metric in GENERATION_METRICS}
    figures = [_change_figure(columns, reward)]
    keys = ("reward_mean", "reward_std", "reverse_kl", "forward_kl", "policy_entropy", "distinct_1", "distinct_2")
    for key in keys:
        metric = Metric(key, titles[key].title, reward) if key == "reward_mean" else titles[key]
        points = _points(columns, key, generation_interval)
        figures.append(dot_figure(f"result-{key}", metric, points))
    return [figure for figure in figures if figure]


def _points(columns: list[Column], key: str, limits: Callable[[dict[str, Any], str], Any]) -> list[Point]:
    points = []
    for column in columns:
        value = number(column.numbers.get(key))
        if value is not None:
            points.append(Point(column.label, column.color, value, interval(limits(column.numbers, key))))
    return points


def _change_figure(columns: list[Column], reward: str) -> Figure | None:
    points = []
    for column in columns:
        entry = None if column.is_base else at(column.run.evaluation, "difference", "reward_mean")
        value = number(at(entry, "estimate"))
        if value is not None:
            points.append(Point(column.label, column.color, value, interval(at(entry, "interval"))))
    metric = Metric("change", "Change of the mean reward", reward)
    return dot_figure(
        "result-change",
        metric,
        points,
        note="If an interval crosses the dotted line, there may be no change at all.",
        line=0.0,
    )


def pair_figures(runs: list[Run]) -> list[Figure]:
    """Held-out pairs: accuracy and margin, and how far each side moved from the reference."""
    columns = [
        Column(r.label, r.index, r, r.evaluation["pairs"]) for r in runs if isinstance(r.evaluation.get("pairs"), dict)
    ]
    metrics = {metric.key: metric for metric in PAIR_METRICS}
    moved = Metric("log_ratio", "Change of the log-probability", "nats per response", signed=True)
    kls = (Metric(f"{name}_kl", f"{name.capitalize()} KL", "nats per response") for name in ("forward", "reverse"))
    figures = [
        dot_figure(
            "pairs-accuracy",
            metrics["accuracy"],
            _points(columns, "accuracy", pair_interval),
            note="Dotted: chance.",
            line=0.5,
        ),
        dot_figure("pairs-margin", metrics["margin"], _points(columns, "margin", pair_interval), line=0.0),
        _sides_figure(columns, moved, note="From the base’s own; right of the line: likelier than before.", line=0.0),
        *(_sides_figure(columns, kl) for kl in kls),
    ]
    return [figure for figure in figures if figure]


def _sides_figure(columns: list[Column], metric: Metric, *, note: str = "", line: float | None = None) -> Figure | None:
    """The chosen and, hollow, the rejected responses of every run; named by the side alone where there is one run."""
    points = []
    for column in columns:
        for side in ("chosen", "rejected"):
            key = f"{side}_{metric.key}"
            value, limits = number(column.numbers.get(key)), interval(pair_interval(column.numbers, key))
            label = side if len(columns) == 1 else f"{column.label}, {side}"
            if value is not None:
                points.append(Point(label, column.color, value, limits, hollow=side == "rejected"))
    return dot_figure(f"pairs-{metric.key}", metric, points, note=note, line=line)


def frontier_figures(columns: list[Column], runs: list[Run]) -> list[Figure]:
    """Mean reward against what it cost: both KLs, and diversity."""
    reward = reward_name(runs)
    plots = (
        (
            "reverse_kl",
            "Reward against reverse KL",
            "reverse KL, nats per response",
            "Up and to the left is better.",
        ),
        (
            "forward_kl",
            "Reward against forward KL",
            "forward KL, nats per response",
            "Up and to the left is better.",
        ),
        ("distinct_2", "Reward against diversity", "distinct word pairs", "Up and to the right is better."),
    )
    return [f for key, title, x_title, note in plots if (f := _frontier(columns, key, title, x_title, reward, note))]


def _frontier(columns: list[Column], key: str, title: str, x_title: str, reward: str, note: str) -> Figure | None:
    data, rows = [], []
    extent: list[float] = []
    furthest = max((x for column in columns if (x := number(column.numbers.get(key))) is not None), default=0)
    for column in columns:
        x, y = number(column.numbers.get(key)), number(column.numbers.get("reward_mean"))
        if x is None or y is None:
            continue
        x_limits, y_limits = (interval(generation_interval(column.numbers, name)) for name in (key, "reward_mean"))
        tint = color(column.color)
        extent += [x, *(x_limits or ())]
        rows.append([column.label, f"{show(x)} {show_interval(x_limits)}", f"{show(y)} {show_interval(y_limits)}"])
        hover = f"{plot_text(column.label, 40)}<br>{x_title}: {show(x)}<br>reward: {show(y)}<extra></extra>"
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [x],
                "y": [y],
                "text": [plot_text(column.label, 14)],
                "textposition": "top left" if x == furthest else "top right",
                "marker": {"color": tint, "symbol": symbol(column.color), "size": 11},
                "error_x": {**error_bar([x_limits], [x], tint), "thickness": 1.25},
                "error_y": {**error_bar([y_limits], [y], tint), "thickness": 1.25},
                "hovertemplate": hover,
                "cliponaxis": False,
            }
        )
    if len(rows) < 2:
        return None
    layout = base_layout(x_title, f"mean {reward}" if reward != "reward" else "mean reward", height=300)
    if key.endswith("kl"):
        layout["xaxis"]["rangemode"] = "tozero"
    elif ends := readable_range(key, extent):
        layout["xaxis"]["range"] = ends
    alt = f"{title}. " + " ".join(f"{label}: {x_title} {x}, mean reward {y}." for label, x, y in rows)
    return Figure(f"frontier-{key}", title, "", note, alt, ["Model", x_title, "mean reward"], rows, data, layout)


def distribution_figure(columns: list[tuple[str, int, list[float]]], reward: str) -> Figure | None:
    """How the rewards of single responses are spread: the share of each model's responses in 20 equal bins.

    `columns`: (label, colour index, rewards) of each model. None when there is nothing to spread.
    """
    columns = [column for column in columns if column[2]]
    values = [value for _, _, rewards in columns for value in rewards]
    if not values or min(values) == max(values):
        return None
    edges, shares = _histogram([rewards for _, _, rewards in columns], bins=20)
    data, words = [], []
    for (label, index, _), share in zip(columns, shares, strict=True):
        base = index == BASE_COLOR
        trace = {
            "type": "scatter",
            "mode": "lines",
            "x": edges,
            "y": [*share, share[-1]],
            "line": {"shape": "hv", "color": color(index), "width": 2, "dash": "dot" if base else "solid"},
            "hovertemplate": f"{plot_text(label, 40)}: %{{y:.1%}} from %{{x:.2f}}<extra></extra>",
        }
        data.append(trace | ({"fill": "tozeroy", "fillcolor": translucent(index, 0.14)} if base else {}))
        words.append(f"{label}: {100 * sum(share[: len(share) // 2]):.0f} % in the lower half of the range.")
    layout = base_layout(height=270)
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    rows = [
        [f"{show(low)} to {show(high)}", *(f"{100 * share[i]:.1f} %" for share in shares)]
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    return Figure(
        id="reward-distribution",
        title="Rewards of single responses",
        unit=reward,
        note="Share of the responses in each of 20 bins; the dotted outline is the base model.",
        alt=f"Distribution of the rewards of single responses. {' '.join(words)}",
        heads=[reward, *(label for label, _, _ in columns)],
        rows=rows,
        data=data,
        layout=layout,
    )


def _histogram(groups: list[list[float]], bins: int) -> tuple[list[float], list[list[float]]]:
    """Edges of equal bins over all values, and for each group the share of its values in each bin."""
    low, high = min(map(min, groups)), max(map(max, groups))
    edges = [round(low + (high - low) * i / bins, 9) for i in range(bins + 1)]
    shares = []
    for values in groups:
        counts = [0] * bins
        for value in values:
            counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
        shares.append([count / len(values) for count in counts])
    return edges, shares
