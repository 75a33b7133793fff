"""What intervals a planned study will have, from the variances of this one: python docs/study/power.py

Prints a table in Markdown: for each task and metric the three standard deviations of a difference of two arms, and the
half-width of a 95 % interval at each design, for two arms and for a main effect (the mean of two against that of two).
Another finished study is read with its folder as the first argument, and the responses to each of its prompts as the
second.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from tdpo.comparison.expected_widths import Design, pair_components, planned_half_width
from tdpo.comparison.prompt_table import read_prompt_table

METRICS = ("gated_embedding_diversity", "embedding_diversity", "mode_coverage", "exact_effective_modes", "reward_mean")
DESIGNS = (Design(4, 40), Design(5, 44, prompts=3))
KINDS = {"two arms": (1.0, -1.0), "main effect": (0.5, 0.5, -0.5, -0.5)}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    drawn = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    table = read_prompt_table(folder / "prompts.csv")
    designs = [f"{d.seeds} seeds × {d.themes} themes × {d.prompts}" for d in DESIGNS]
    heads = ["task", "metric", "seed", "theme", "rest", *(f"{design}: {kind}" for design in designs for kind in KINDS)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for task in table.tasks():
        for metric in METRICS:
            parts = pair_components(table, task, metric)
            if parts is None:
                continue
            components, drawing = parts
            variances = (components.seed, components.theme, components.rest)
            widths = [
                planned_half_width(components, drawing, drawn, design, weights)
                for design in DESIGNS
                for weights in KINDS.values()
            ]
            cells = [f"{math.sqrt(variance):.3f}" for variance in variances] + [f"±{width:.3f}" for width in widths]
            print(f"| {task} | {metric} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
