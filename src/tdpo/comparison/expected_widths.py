"""How long the intervals of a planned study will be, from the variances of a finished one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..methods import REFERENCE
from ..records.study_tables import CellKey
from .cell_statistics import same_but_for_the_seed
from .prompt_table import PromptTable
from .two_way import Components, Numbers, expected_half_width, filled, mean_squares


@dataclass(frozen=True)
class Design:
    """A planned study: seeds, themes, prompts of each theme and responses to each prompt."""

    seeds: int
    themes: int
    prompts: int = 1
    responses: int = 16


def pair_components(table: PromptTable, task: str, metric: str) -> tuple[Components, float] | None:
    """(variances of the difference of two trained arms at a prompt, how much of the rest is from drawing responses).

    The variances are means over all pairs of arms at their middle strength, each estimated without bias; a mean below
    zero is zero. Prompts count as themes: where several are of one theme, that of themes is too small and the rest too
    large. What drawing responses adds is seen in the reference, which differs between seeds by nothing else. None with
    fewer than two seeds, two arms or six prompts.
    """
    arms = list(dict.fromkeys(cell.arm for cell in table.of(task) if cell.arm != REFERENCE))
    tables = [values for arm in arms if (values := _values(table, _middle(table, task, arm), metric)) is not None]
    parts = [part for pair in combinations(tables, 2) if (part := _unbiased(pair[0] - pair[1])) is not None]
    if not parts:
        return None
    seed, theme, rest = (float(max(mean, 0.0)) for mean in np.mean(parts, axis=0))
    reference = _values(table, table.of(task, REFERENCE), metric)
    return Components(seed, theme, rest), min(2 * _between_seeds(reference), rest)


def planned_half_width(
    components: Components, drawing: float, drawn: int, design: Design, weights: Sequence[float] = (1, -1)
) -> float:
    """The half-width to expect of a contrast with these weights; `drawn` responses to a prompt gave `components`."""
    scale = sum(weight**2 for weight in weights) / 2  # arms vary independently
    rest = (components.rest - drawing * (1 - drawn / design.responses)) / design.prompts
    planned = Components(components.seed * scale, components.theme * scale, max(rest, 0.0) * scale)
    return expected_half_width(planned, design.seeds, design.themes)


def _middle(table: PromptTable, task: str, arm: str) -> list[CellKey]:
    groups = same_but_for_the_seed(table.of(task, arm))
    return groups[len(groups) // 2]


def _values(table: PromptTable, cells: Sequence[CellKey], metric: str) -> Numbers | None:
    """[seeds, prompts]; None where a cell was not measured or there is one seed."""
    rows = [values for cell in cells if (values := table.cells[cell].get(metric)) is not None]
    return np.stack(rows) if len(rows) == len(cells) > 1 else None


def _between_seeds(values: Numbers | None) -> float:
    """The mean over prompts of the variance between seeds; 0 where nothing is known of it."""
    if values is None:
        return 0.0
    several = values[:, np.isfinite(values).sum(axis=0) > 1]
    return float(np.nanvar(several, axis=0, ddof=1).mean()) if several.size else 0.0


def _unbiased(difference: Numbers) -> tuple[float, float, float] | None:
    """(seed, prompt, rest); prompts without a value in half of the seeds are left out."""
    known = np.isfinite(difference)
    kept = known.sum(axis=0) * 2 > len(difference)
    if kept.sum() < 6 or not known[:, kept].any(axis=1).all():
        return None
    seeds, prompts = len(difference), int(kept.sum())
    parts = mean_squares(filled(difference[:, kept]), float(known[:, kept].mean()))
    of_seeds, of_prompts, rest = (float(part) for part in parts)
    return of_seeds - rest / prompts, of_prompts - rest / seeds, rest
