"""The tables of the exact benchmark as `tdpo exact` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...records.csv_files import csv_lines
from ...records.json_files import read_json
from ...records.names import ABOUT_FILE

Row = dict[str, Any]
NAMES = {"tree", "shape", "rewards", "method", "learner", "matched"}  # columns that hold words


@dataclass(frozen=True)
class Exact:
    """Rows of the three tables, numbers as floats (None where there is none), and what about.json says."""

    infinite: list[Row]
    matched: list[Row]
    finite: list[Row]
    about: dict[str, Any]

    @cached_property
    def methods(self) -> list[dict[str, str]]:
        """name, label, data and direction of every method, in their order."""
        return list(self.about["methods"])

    def values(self, table: str, column: str) -> list[str]:
        """The different words of a column, in the order of the table."""
        return list(dict.fromkeys(row[column] for row in getattr(self, table)))


def load_exact(folder: Path) -> Exact:
    """Raises FileNotFoundError where a table is missing, ValueError where about.json is none."""
    about = read_json(folder / ABOUT_FILE)
    infinite, matched, finite = (_rows(folder / f"{name}.csv") for name in ("infinite", "matched", "finite"))
    return Exact(infinite, matched, finite, about)


def _rows(path: Path) -> list[Row]:
    (_, columns), *lines = csv_lines(path)
    return [{key: _value(key, text) for key, text in zip(columns, cells, strict=True)} for _, cells in lines]


def _value(column: str, text: str) -> Any:
    return text if column in NAMES else float(text) if text else None
