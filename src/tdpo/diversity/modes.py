"""How many of an environment's modes occur, and how evenly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable


def mode_coverage(labels: Iterable[str | None], modes: Collection[str]) -> float | None:
    """Share of the `modes` that occur among the labels of the responses, in [0, 1]; None where there are no modes.

    The label None means that a response is in no mode. The share rises with the number of responses, so compare equal
    numbers only. Raises ValueError for a label that is not among the modes.
    """
    possible, present = set(modes), {label for label in labels if label is not None}
    if present - possible:
        raise ValueError(f"the label {min(present - possible)!r} is not among the known modes {sorted(possible)}")
    return len(present) / len(possible) if possible else None


def mode_entropy(labels: Iterable[str | None]) -> float | None:
    """Effective number of modes: exp of the entropy (nats) of the labels that are not None, in [1, number of modes].

    The Hill number of order 1 (Hill 1973): 1 where all outputs share a mode, M where M modes are equally frequent.
    None where no response is in a mode.
    """
    counts = Counter(label for label in labels if label is not None)
    total = counts.total()
    if not total:
        return None
    return math.exp(-math.fsum(count / total * math.log(count / total) for count in counts.values()))
