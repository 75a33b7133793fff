"""Numbers that a device sums up while it trains, and that are read together: one wait for the device, not one each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Reading:
    """A vector of sums, or of maxima, of what micro-batches measure on the device; float64, on the host once read.

    Args:
        size: of the vector.
        largest: keep the largest values in place of sums; none is below 0.
    """

    def __init__(self, size: int, *, largest: bool = False) -> None:
        self.largest = largest
        self._values = torch.zeros(size, dtype=torch.float64)
        self._pending: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Take in a vector, on any device; nobody waits for it."""
        self._pending.append(values.detach().double())

    @property
    def values(self) -> Tensor:
        """The vector; a wait for the device if something was added since it was read."""
        read([self])
        return self._values

    def set(self, values: Tensor) -> None:
        """Begin anew with these values."""
        self._values, self._pending = values.double().clone(), []

    def take(self, values: Tensor) -> None:
        """Take in a vector that is on the host."""
        self._values = torch.maximum(self._values, values) if self.largest else self._values + values


def read(readings: Sequence[Reading], *others: Tensor) -> Tensor:
    """Bring all readings to the host, and the scalars `others`, which are returned as a vector: one wait for all."""
    pending = [(reading, values) for reading in readings for values in reading._pending]
    vectors = [*(values for _, values in pending), *(scalar.detach().double().reshape(1) for scalar in others)]
    if not vectors:
        return torch.zeros(0, dtype=torch.float64)
    *parts, last = torch.cat(vectors).cpu().split([*(len(values) for _, values in pending), len(others)])
    # One after the other, as they came: sums do not depend on when they are read.
    for (reading, _), values in zip(pending, parts, strict=True):
        reading.take(values)
    for reading in readings:
        reading._pending = []
    return last
