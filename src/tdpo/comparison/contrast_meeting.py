"""How well the arms of a comparison met: both KLs of each, as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Contrast
from ..methods import REFERENCE
from .contrast_tables import KLS, ContrastData, Point

MEETING = 0.15  # arms met if their KLs are within this share of the smallest


@dataclass(frozen=True)
class Meeting:
    """Both KLs of every arm of a comparison, in nats per response, means over seeds and prompts (None: not measured);
    and those of each side, weighted. `met` says whether the arms that are held at the target were within 15 % of each
    other there, `on_target` whether each was within 15 % of the target; None where fewer than two (one) are held."""

    arms: dict[str, dict[str, float | None]]
    sides: dict[str, dict[str, float | None]]
    met: bool | None
    on_target: bool | None


def meeting(data: ContrastData, contrast: Contrast, task: str, target: float | None, seeds: Sequence[int]) -> Meeting:
    """How well the arms of a comparison met, over the seeds that it uses."""
    weights = contrast.weight_of
    arms = {arm: {kl: kl_at(data, task, (arm, target), kl, seeds) for kl in KLS} for arm in weights}
    sides = {
        name: {kl: _weighted([(abs(w), arms[arm][kl]) for arm, w in weights.items() if w * sign > 0]) for kl in KLS}
        for name, sign in (("plus", 1), ("minus", -1))
    }
    held = [arms[arm][contrast.held_kl] for arm in weights if arm in data.held]
    known = [kl for kl in held if kl is not None]
    met = on_target = None
    if held and len(known) < len(held):
        met = on_target = False
    elif known:
        met = max(known) <= (1 + MEETING) * min(known) if len(known) > 1 else None
        on_target = None if target is None else all(abs(kl / target - 1) <= MEETING for kl in known)
    return Meeting(arms, sides, met, on_target)


def kl_at(data: ContrastData, task: str, point: Point, kl: str, seeds: Sequence[int]) -> float | None:
    """The mean over seeds and prompts, in nats per response; None where a seed lacks it. The reference has 0."""
    cells = data.cells(task, *point)
    if point[0] == REFERENCE:
        return 0.0
    values = [data.mean_of(cells[seed], kl) for seed in seeds if seed in cells]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _weighted(entries: Sequence[tuple[float, float | None]]) -> float | None:
    if not entries or any(value is None for _, value in entries):
        return None
    return sum(weight * (value or 0.0) for weight, value in entries) / sum(weight for weight, _ in entries)
