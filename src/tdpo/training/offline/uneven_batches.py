"""The last batches of an epoch on several processes: each pair is learned from once.

accelerate makes the last batches even with pairs from the beginning of the epoch. These would be learned from twice, in
an update that is smaller on one process. Here a batch keeps its own pairs alone, and a process that has none gets a
spare one: it is computed, since the other processes wait for its gradient, and counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import BatchSamplerShard

from ...batches import TokenizedPair

IS_SPARE = "is_spare"  # in the inputs of a step


@dataclass(frozen=True)
class Spare:
    """A pair that stands in for one that there is not."""

    pair: TokenizedPair


class WithSpares:
    """The pairs of an epoch, and behind them each once more as a spare one."""

    def __init__(self, pairs: Sequence[TokenizedPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[TokenizedPair]:
        return iter(self.pairs)

    def __getitem__(self, place: int) -> TokenizedPair | Spare:
        return self.pairs[place] if place < len(self) else Spare(self.pairs[place - len(self)])


@dataclass(frozen=True)
class SpareCollator:
    """A collator that also knows a batch of one spare pair, and marks it."""

    collator: Callable[[Sequence[TokenizedPair]], dict[str, Any]]

    def __call__(self, batch: Sequence[Any]) -> dict[str, Any]:
        if not isinstance(batch[0], Spare):
            return self.collator(batch)
        return {**self.collator([spare.pair for spare in batch]), IS_SPARE: True}


class EachOnce(BatchSamplerShard):
    """One process's batches of an epoch, without what accelerate fills them up with."""

    def __iter__(self) -> Iterator[list[int]]:
        rows = len(self.batch_sampler.sampler)
        for turn, batch in enumerate(super().__iter__()):
            first = (turn * self.num_processes + self.process_index) * self.batch_size
            yield batch[: max(rows - first, 0)] or [rows + batch[0]]


def each_pair_once(loader: Any) -> Any:
    """A loader that accelerate has prepared, over `WithSpares`, with the batches of `EachOnce`."""
    shard: Any = getattr(loader, "batch_sampler", None)
    if type(shard) is BatchSamplerShard and not shard.split_batches:
        shard.__class__ = EachOnce  # a loader takes no other sampler once it is made, and accelerate makes both
    return loader
