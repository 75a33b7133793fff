"""A study's results for the terminal: one line an arm and strength, and the claims."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {
    "reward_mean": "reward",
    "reward_variance": "its variance",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "embedding_diversity": "diversity",
    "mode_coverage": "modes",
    "accuracy": "accuracy",
}


def results_table(folder: Path) -> Table:
    """Means over seeds; KLs in nats a response, diversity is 1 − mean cosine of sentence embeddings."""
    from rich.table import Table

    from ..comparison.arms import LABELS
    from ..comparison.tables import ALL_SEEDS, read_results

    rows = [row for row in read_results(folder / "results.csv") if row.seed == ALL_SEEDS and row.metric in SHOWN]
    shown = {metric: name for metric, name in SHOWN.items() if any(row.metric == metric for row in rows)}
    table = Table(title="means over seeds and held-out prompts", title_justify="left")
    for heading in ("task", "arm", "strength", *shown.values()):
        table.add_column(heading, justify="left" if heading in ("task", "arm") else "right")
    values = {(row.task, row.arm, row.strength, row.metric): row.value for row in rows}
    last = None
    for task, arm, strength in dict.fromkeys((row.task, row.arm, row.strength) for row in rows):
        if last is not None and task != last:
            table.add_section()
        numbers = [values.get((task, arm, strength, metric)) for metric in shown]
        cells = ["–" if number is None else f"{number:.3g}" for number in numbers]
        table.add_row(task if task != last else "", LABELS[arm], strength, *cells)
        last = task
    return table


def claims_text(folder: Path) -> Iterator[str]:
    """Each claim with its verdict and why."""
    from ..runs import read_json

    yield ""
    for claim in read_json(folder / "claims.json")["claims"]:
        yield f"({claim['id']}) {claim['text']} {claim['verdict'].upper()}."
        yield textwrap.indent(textwrap.fill(claim["why"], 100), "    ")
