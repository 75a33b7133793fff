"""A static cache for compiled steps whose memory serves one batch after another.

A CUDA graph belongs to the addresses that it was recorded with, so a cache of its own for every batch, and new tensors
for the rows that are left of it, would have each step's graph recorded again and again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer


class StaticRoom(StaticCache):
    """transformers' cache of full size, written in place where a tensor says.

    Keys and values of any batch begin where those of the first one did. So they take the memory of the largest batch
    so far, and only a larger one has it taken anew.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config, max_cache_len=0)
        self.layers = [_RoomLayer(0) for _ in self.layers]

    def empty(self, capacity: int) -> None:
        """Make room for a batch of up to `capacity` tokens a row; its rows are those of what is written first."""
        for layer in self.layers:
            layer.empty(capacity)


class _RoomLayer(StaticLayer):
    """A layer whose keys and values `[R, H, capacity, D]` are the beginning of flat memory."""

    def __init__(self, max_cache_len: int) -> None:
        super().__init__(max_cache_len)
        self.rooms: list[Tensor] = []

    def empty(self, capacity: int) -> None:
        self.max_cache_len = capacity
        for room in self.rooms:
            room.zero_()  # a masked place weighs nothing, unless an infinite value stayed in it
        self.cumulative_length.zero_()
        self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.rooms:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.rooms = [states.new_empty(0) for states in (key_states, value_states)]
            self.cumulative_length = self.cumulative_length.to(self.device)
            torch._dynamo.mark_static_address(self.cumulative_length)
        self._show(len(key_states), key_states, value_states)
        self.is_initialized = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        chosen = [states.index_select(0, beam_idx.to(self.device)) for states in (self.keys, self.values)]
        self._show(len(beam_idx), *chosen)
        self.keys.copy_(chosen[0])
        self.values.copy_(chosen[1])

    def _show(self, rows: int, *like: Tensor) -> None:
        """Lay out keys and values of so many rows, of the kind of these."""
        shown = []
        for number, states in enumerate(like):
            shape = (rows, states.shape[1], self.max_cache_len, states.shape[3])
            entries = math.prod(shape)
            if len(self.rooms[number]) < entries:
                self.rooms[number] = states.new_zeros(entries)
            # `data`: to torch.compile it is a tensor of its own, and not a part of one that it must reckon with.
            shown.append(self.rooms[number][:entries].view(shape).data)
            # torch records no graph of what writes into a tensor that is not marked so.
            torch._dynamo.mark_static_address(shown[-1])
        self.keys, self.values = shown
