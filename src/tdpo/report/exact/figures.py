"""The figures of the exact benchmark: grids of small panels, one a problem; rows are references, columns rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..drawing import BASE_GREY, Figure, base_layout, plot_text
from ..numbers import show
from .benchmark_reading import Exact, Row

COLORS = {"forward": "#8e44d6", "reverse": "#d55e00", "": BASE_GREY}  # by the direction of the KL
DASHES = {"pairs": "solid", "rewards": "dash", "reference": "dot"}  # by what is learned from
SYMBOLS = (
    "circle", "triangle-up", "triangle-down", "pentagon", "diamond", "square", "star", "hexagon", "cross", "x",
    "triangle-left", "triangle-right", "hourglass", "bowtie", "asterisk",
)  # fmt: skip
SHAPES = {"peaked": "peaked", "flat": "flat", "multimodal": "several modes"}
REWARDS = {"equal": "equal rewards", "common": "more for the common", "rare": "more for the rare"}
GAP = 0.03  # between panels, as a share of the figure
Draw = Callable[[Row], tuple[Any, Any]]


@dataclass(frozen=True)
class Measure:
    """A column that a frontier has on its horizontal axis."""

    key: str
    title: str
    note: str


MEASURES = (
    Measure("forward_kl", "KL(reference‖policy), nats", "Up and to the left is better."),
    Measure("reverse_kl", "KL(policy‖reference), nats", "Up and to the left is better."),
    Measure("mode_coverage", "share of the modes among 16 draws", "Up and to the right is better."),
    Measure("effective_modes", "effective number of modes", "Up and to the right is better."),
)


def frontier(exact: Exact, tree: str, measure: Measure) -> Figure:
    """Reward against a measure with infinite data, each method a line through its strengths, from the reference on."""
    rows = [row for row in exact.infinite if row["tree"] == tree]
    data, layout = _grid(exact, rows, lambda row: (row[measure.key], row["reward"]), measure.title, "reward")
    matched = [r for r in exact.matched if r["tree"] == tree and r["matched"] == "reward"]
    heads = ["Problem", "Method", "Reward", "Strength", measure.title]
    words = [
        [_problem(r), _label(exact, r), show(r["reward"]), show(r["strength"]), show(r[measure.key])] for r in matched
    ]
    alt = f"Reward against {measure.title}, {len(data)} lines in 9 panels; the table has the values at equal reward."
    title = f"Reward against {measure.title}"
    return Figure(f"{_id(tree)}-{measure.key}", title, "", measure.note, alt, heads, words, data, layout)


def kept(exact: Exact, tree: str) -> Figure:
    """Entropy at the same reward, a dot a method."""
    rows = [r for r in exact.matched if r["matched"] == "reward" and r["tree"] == tree]
    rows = [r for r in rows if r["target"] == min(other["target"] for other in rows if _problem(other) == _problem(r))]
    order = [m["name"] for m in exact.methods if any(r["method"] == m["name"] for r in rows)]
    place = {name: len(order) - index for index, name in enumerate(order)}
    data, layout = _grid(
        exact, rows, lambda row: (row["entropy"], place[row["method"]]), "entropy, nats a response", ""
    )
    labels = {m["name"]: m["label"] for m in exact.methods}
    for axis in [key for key in layout if key.startswith("yaxis")]:
        layout[axis] |= {"tickvals": list(place.values()), "ticktext": [plot_text(labels[n], 34) for n in place]}
        layout[axis]["range"] = [0.4, len(place) + 0.6]
        layout[axis]["showticklabels"] = layout[axis.replace("y", "x")]["domain"][0] == 0
    layout["height"] = 900
    heads = [
        "Problem",
        "Method",
        "Reward",
        "Entropy",
        "Effective modes",
        "KL(reference‖policy)",
        "KL(policy‖reference)",
    ]
    keys = ("reward", "entropy", "effective_modes", "forward_kl", "reverse_kl")
    words = [[_problem(r), _label(exact, r), *(show(r[key]) for key in keys)] for r in rows]
    alt = f"Entropy at equal reward, {len(rows)} dots; the table has them."
    note = "Farther to the right is more diverse. A method that never has this reward has no dot."
    return Figure(f"{_id(tree)}-kept", "Entropy at equal reward", "", note, alt, heads, words, data, layout)


def learning(exact: Exact, tree: str) -> Figure:
    """Distance to the own optimum against the number of scored responses, mean of the studies."""
    rows = [r for r in exact.finite if r["tree"] == tree]
    data, layout = _grid(
        exact, rows, lambda row: (row["scored"], row["distance"]), "scored responses", "distance to its optimum"
    )
    for axis in [key for key in layout if key.startswith("xaxis")]:
        layout[axis] |= {"type": "log", "tickvals": [50, 500, 5000]}
    heads = ["Problem", "Method", "Learner", "Scored", "Distance", "Its deviation", "Reward", "Its deviation"]
    keys = ("scored", "distance", "distance_sd", "reward", "reward_sd")
    words = [[_problem(r), _label(exact, r), r["learner"], *(show(r[key]) for key in keys)] for r in rows]
    alt = "Total variation between what a method learned and its optimum, by scored responses; the table has it."
    note = "Total variation, in [0, 1]; down is closer. PPO and RLOO are two lines of one method."
    return Figure(f"{_id(tree)}-finite", "Distance to the own optimum", "", note, alt, heads, words, data, layout)


def _id(tree: str) -> str:
    return f"tree-{tree.replace('^', '-')}"


def _problem(row: Row) -> str:
    return f"{SHAPES[row['shape']]}, {REWARDS[row['rewards']]}"


def _label(exact: Exact, row: Row) -> str:
    return next(m["label"] for m in exact.methods if m["name"] == row["method"])


def _grid(exact: Exact, rows: list[Row], draw: Draw, x: str, y: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Traces and layout of a grid of panels; `draw` gives a row's place in its panel."""
    shapes = [s for s in SHAPES if any(r["shape"] == s for r in rows)]
    rewards = [r for r in REWARDS if any(row["rewards"] == r for row in rows)]
    base = base_layout()
    layout: dict[str, Any] = {**base, "height": 110 + 230 * len(shapes), "annotations": []}
    layout["margin"] = {"l": 60, "r": 12, "t": 30, "b": 40, "pad": 2}
    data: list[dict[str, Any]] = []
    for number, (down, shape, across, reward) in enumerate(_panels(shapes, rewards), start=1):
        suffix = "" if number == 1 else str(number)
        left, right = _share(across, len(rewards))
        low, high = _share(len(shapes) - 1 - down, len(shapes))
        x_title = x if down == len(shapes) - 1 else ""
        x_axis = {**base["xaxis"], "title": {"text": plot_text(x_title, 60)}, "domain": [left, right], "nticks": 5}
        y_axis = {**base["yaxis"], "title": {"text": plot_text(y if across == 0 else "", 60)}, "domain": [low, high]}
        layout[f"xaxis{suffix}"] = {**x_axis, "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = {**y_axis, "anchor": f"x{suffix}"}
        layout["annotations"].append(
            {"text": f"{SHAPES[shape]}, {REWARDS[reward]}", "x": (left + right) / 2, "y": high, "xref": "paper",
             "yref": "paper", "xanchor": "center", "yanchor": "bottom", "showarrow": False, "font": {"size": 12}}
        )  # fmt: skip
        own = [r for r in rows if r["shape"] == shape and r["rewards"] == reward]
        data += list(_lines(exact, own, draw, suffix))
    return data, layout


def _panels(shapes: list[str], rewards: list[str]) -> Iterator[tuple[int, str, int, str]]:
    for down, shape in enumerate(shapes):
        for across, reward in enumerate(rewards):
            yield down, shape, across, reward


def _share(index: int, count: int) -> tuple[float, float]:
    width = (1 - GAP * 2 * (count - 1)) / count
    first = index * (width + 2 * GAP)
    return first, first + width


def _lines(exact: Exact, rows: list[Row], draw: Draw, suffix: str) -> Iterator[dict[str, Any]]:
    for index, method in enumerate(exact.methods):
        own = [row for row in rows if row["method"] == method["name"]]
        for learner in dict.fromkeys(row.get("learner", "") for row in own):
            points = [draw(row) for row in own if row.get("learner", "") == learner]
            label = plot_text(f"{method['label']}{f' ({learner.upper()})' if learner in ('ppo', 'rloo') else ''}", 50)
            color = COLORS[method["direction"]]
            yield {
                "type": "scatter",
                "mode": "lines+markers" if len(points) > 1 else "markers",
                "x": [point[0] for point in points],
                "y": [point[1] for point in points],
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "line": {"color": color, "width": 1.5, "dash": DASHES[method["data"]]},
                "marker": {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
                "hovertemplate": f"{label}: %{{x:.3f}}, %{{y:.3f}}<extra></extra>",
            }


def legend(exact: Exact) -> list[tuple[str, str, str, str]]:
    """(label, colour, symbol in words, data and direction in words) of every method."""
    words = {"forward": "forward KL", "reverse": "reverse KL", "": "no KL"}
    return [
        (m["label"], COLORS[m["direction"]], SYMBOLS[i % len(SYMBOLS)],
         f"{m['data']}, {words[m['direction']]}" if m["data"] != "reference" else "sampled, not trained")
        for i, m in enumerate(exact.methods)
    ]  # fmt: skip
