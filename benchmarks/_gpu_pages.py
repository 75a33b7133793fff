"""The table of a GPU in README.md and benchmarks/README.md: between two marks, made of the result files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _gpu_limits import ELSEWHERE, LIMITS, judged, shown

PAGES = ("README.md", "benchmarks/README.md")
BEGIN, END = "<!-- table of a GPU: gpu_session.py --judge --pages -->", "<!-- end of the table of a GPU -->"
NOTHING = (
    "No number of a GPU is known yet: nobody has run `python benchmarks/gpu_session.py` on a card.\n"
    "`python benchmarks/gpu_session.py --judge --pages` puts them here. The tables below are of CPUs."
)
NAMED = ("torch", "transformers", "trl", "triton", "liger-kernel", "cut-cross-entropy", "commit")

Results = Mapping[str, dict[str, Any]]


def cards(results: Results) -> list[str]:
    """The cards that results come from, with driver and versions; more than one where sessions were mixed."""
    found = []
    for result in results.values():
        hardware, versions = result.get("hardware", {}), result.get("versions", {})
        if "card" in hardware:
            named = ", ".join(f"{name} {versions.get(name, 'unknown')}" for name in NAMED)
            found.append(f"{hardware['card']} (driver {hardware['driver']}, CUDA {hardware['cuda']}, {named})")
    return sorted(set(found))


def page_table(results: Results) -> str:
    """What stands between the marks: every ratio beside its limit, or that there is none."""
    measured = {name: result for name, result in results.items() if "card" in result.get("hardware", {})}
    lines = [judged(limit, measured) for limit in LIMITS]
    if all(line["value"] is None for line in lines):
        return NOTHING
    rows = [
        f"| {line['what']} | {_value(line)} | {'at least' if limit.at_least else 'at most'} {limit.limit:.3g} |"
        for line, limit in zip(lines, LIMITS, strict=True)
    ]
    on = "; ".join(cards(measured))
    head = f"On {on}. Ratios of medians of runs that alternate; raw numbers in `benchmarks/results/gpu-*.json`."
    return "\n".join([head, "", "| | measured | limit |", "|---|---|---|", *rows, "", "Not in this table:", *(
        f"- {sentence}" for sentence in ELSEWHERE
    )])  # fmt: skip


def _value(line: Mapping[str, Any]) -> str:
    if line["value"] is None:
        return "not measured"
    value = shown(line["value"])
    return value if line["met"] else f"**{value}, missed**"


def between_marks(page: str) -> str:
    """The text between the two marks of a page."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def fill_pages(root: Path, results: Results) -> None:
    """Write the table between the marks of both pages, and nothing else of them."""
    for name in PAGES:
        path = root / name
        before, rest = path.read_text("utf-8").split(BEGIN)
        path.write_text(f"{before}{BEGIN}\n\n{page_table(results)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
        print(f"written: {path}")
