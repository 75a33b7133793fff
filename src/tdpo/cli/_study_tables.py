"""The results of a study for the terminal: tables by task, answers to its questions, claims."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..records.study_tables import ResultRow

SHOWN = {
    "reward_mean": "reward",
    "reward_variance": "vari-\nance",
    "forward_kl": "forward\nKL",
    "reverse_kl": "reverse\nKL",
    "embedding_diversity": "diver-\nsity",
    "mode_coverage": "modes",
    "accuracy": "accu-\nracy",
}


def results_tables(folder: Path) -> Iterator[Table]:
    """Yield a table for each task with the measures that it has: means over seeds and held-out prompts.

    KLs are in nats per response. Diversity is 1 − mean cosine of sentence embeddings. A table fits into 80 columns.
    """
    from ..records.study_tables import ALL_SEEDS, read_results

    rows = [row for row in read_results(folder / "results.csv") if row.seed == ALL_SEEDS and row.metric in SHOWN]
    for task in dict.fromkeys(row.task for row in rows):
        yield _table_of(task, [row for row in rows if row.task == task])


def _table_of(task: str, rows: Sequence[ResultRow]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from ..methods import ARMS

    headings = {metric: name for metric, name in SHOWN.items() if any(row.metric == metric for row in rows)}
    table = Table(
        title=Text(f"{task}: means over seeds and held-out prompts", style="table.title"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # the box puts a space between columns
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("strength", *headings.values()):
        table.add_column(heading, justify="right")
    values = {(row.arm, row.strength, row.metric): row.value for row in rows}
    for arm, strength in dict.fromkeys((row.arm, row.strength) for row in rows):
        numbers = [values.get((arm, strength, metric)) for metric in headings]
        table.add_row(
            ARMS[arm].label, Text(strength), *("–" if number is None else f"{number:.3g}" for number in numbers)
        )
    return table


def answers_text(folder: Path) -> Iterator[str]:
    """Yield each question, and for each of its answers a line with number, interval and verdict; nothing for a study
    without questions. The sentences are in questions.json and in the report."""
    from ..records.json_files import read_json
    from ..records.names import QUESTIONS_FILE

    if not (folder / QUESTIONS_FILE).exists():
        return
    answers = read_json(folder / QUESTIONS_FILE)
    if answers["missing_cells"]:
        yield f"So far: {answers['missing_cells']} runs are missing."
    for number, question in enumerate(answers["questions"], start=1):
        plus, minus = question["sides"]
        part = f", {question['component']} prompts" if question["component"] else ""
        against = f" against {minus}" if minus else ""
        heading = f"({number}) {question['text']} {question['metric']}{part}: {plus}{against}"
        yield textwrap.fill(heading, 80, subsequent_indent="    ")
        for answer in question["answers"]:
            yield textwrap.fill(_answer_text(answer), 80, initial_indent="    ", subsequent_indent="      ")


def _answer_text(answer: dict[str, Any]) -> str:
    from ..records.metric_names import counted

    where = answer["task"] if answer["target"] is None else f"{answer['task']} at {counted(answer['target'], 'nat')}"
    if answer["value"] is None:
        return f"{where}: not measured, {answer['reason']}"
    limits = "" if answer["low"] is None else f" [{answer['low']:+.3f}, {answer['high']:+.3f}]"
    p_holm, p = answer["p_holm"], answer["p"]
    sure = "" if p is None else f", p = {p:.3f}" if p_holm is None else f", adjusted p = {p_holm:.3f}"
    apart = ", ARMS DID NOT MEET" if (answer["meeting"] or {}).get("met") is False else ""
    return f"{where}: {answer['value']:+.3f}{limits}{sure}: {answer['verdict'].upper()}{apart}"


def claims_text(folder: Path) -> Iterator[str]:
    """Yield each claim with its verdict and the reason for it."""
    from ..records.json_files import read_json

    verdicts = read_json(folder / "claims.json")
    provisional = " so far" if verdicts.get("missing_cells") else ""
    for claim in verdicts["claims"]:
        yield f"({claim['id']}) {claim['text']} {claim['verdict'].upper()}{provisional}."
        yield textwrap.indent(textwrap.fill(claim["why"], 76), "    ")
