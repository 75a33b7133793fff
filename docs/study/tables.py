"""The tables of a page about a study with questions: python docs/study/tables.py docs/study/two_cores

Prints Markdown from the study's `results.csv` and `questions.json`: the mean of every arm over seeds, every seed, and
every answer, as it is and at equal values of the KL that was not held.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tdpo.methods import ARMS
from tdpo.records.study_tables import ALL_SEEDS, ResultRow, read_results

MEANS = {
    "reward": ("reward_mean", 2),
    "its variance": ("reward_variance", 3),
    "reverse KL": ("reverse_kl", 2),
    "forward KL": ("forward_kl", 2),
    "diversity, good ones": ("gated_embedding_diversity", 3),
    "diversity, all": ("embedding_diversity", 3),
    "good ones": ("gated_share", 2),
    "effective modes": ("exact_effective_modes", 2),
    "entropy a token": ("policy_entropy", 2),
}
OF_SEEDS = {
    "factor on the adapter": ("adapter_factor", 2),
    **{name: MEANS[name] for name in ("reverse KL", "forward KL", "reward", "diversity, good ones", "effective modes")},
}


def means(rows: Sequence[ResultRow]) -> Iterator[str]:
    """One line an arm and strength."""
    values = {(row.arm, row.strength, row.metric): row.value for row in rows if row.seed == ALL_SEEDS}
    yield from head(["arm", "strength", *MEANS])
    for arm, strength in dict.fromkeys(key[:2] for key in values):
        numbers = [shown(values.get((arm, strength, metric)), digits) for metric, digits in MEANS.values()]
        yield line([ARMS[arm].label, strength, *numbers])


def of_seeds(rows: Sequence[ResultRow]) -> Iterator[str]:
    """One line an arm and target at which it is held; in each cell the seeds in their order."""
    values = {(row.arm, row.strength, row.seed, row.metric): row.value for row in rows if row.seed != ALL_SEEDS}
    seeds = sorted({seed for _, _, seed, _ in values})
    yield from head(["arm", "target", *OF_SEEDS])
    for arm, target in dict.fromkeys(key[:2] for key in values if key[3] == "adapter_factor"):
        cells = [
            ", ".join(shown(values.get((arm, target, seed, metric)), digits) for seed in seeds)
            for metric, digits in OF_SEEDS.values()
        ]
        yield line([ARMS[arm].label, target, *cells])


def answers(questions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line an answer, with its 95 % interval; p is adjusted by Holm's method in the primary family."""
    yield from head(["question", "nats", "difference", "95 %", "90 %", "p", "verdict", "arms met"])
    for question, answer in each_answer(questions):
        p = answer.get("p_holm" if question["primary"] else "p")
        met = {True: "yes", False: "no", None: ""}[(answer["meeting"] or {"met": None})["met"]]
        intervals = [interval(answer, level) for level in ("", "_90")]
        numbers = [signed(answer["value"]), *intervals, shown(p, 3)]
        yield line([named(question), f"{answer['target']:g}", *numbers, answer["verdict"], met])


def sensitivities(questions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line an answer that can be adjusted to equal values of the KL that was not held."""
    yield from head(["question", "nats", "difference", "at equal forward KL", "95 %"])
    for question, answer in each_answer(questions):
        if adjusted := answer["adjusted"]:
            numbers = [signed(answer["value"]), signed(adjusted["value"]), interval(adjusted)]
            yield line([named(question), f"{answer['target']:g}", *numbers])


def each_answer(questions: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(question, answer) for question in questions for answer in question["answers"]]


def named(question: dict[str, Any]) -> str:
    return f"**{question['text']}**" if question["primary"] else str(question["text"])


def interval(answer: dict[str, Any], level: str = "") -> str:
    return f"[{signed(answer.get('low' + level))}, {signed(answer.get('high' + level))}]"


def head(names: Sequence[str]) -> list[str]:
    return [line(names), f"|{'---|' * len(names)}"]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}".replace("-", "−")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    rows = read_results(folder / "results.csv")
    content = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        print(f"**{task}**, means over seeds\n")
        print("\n".join(means(of_task)), "\n")
        print("\n".join(of_seeds(of_task)), "\n")
    print("\n".join(answers(content["questions"])), "\n")
    print("\n".join(sensitivities(content["questions"])))


if __name__ == "__main__":
    main()
