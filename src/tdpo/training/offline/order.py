"""The order in which batches of similar lengths are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class LengthGroupedOrder(LengthGroupedSampler):
    """transformers' `LengthGroupedSampler`, drawn from seed and epoch instead of the global random state.

    The global state differs between processes once anything random runs in them, and is elsewhere when a run is
    resumed within an epoch; pairs would then be trained on twice or never.

    Args:
        lengths: tokens of each pair.
        batch_size: pairs of an update; batches of so many are of similar lengths.
        seed: of the order.
        epoch: gives the current epoch when one begins.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=draw))
