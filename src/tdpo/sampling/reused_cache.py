"""A static cache for recorded and compiled steps whose memory serves one batch after another.

A CUDA graph belongs to the addresses that it was recorded with. With a cache of its own for every batch, and new
tensors for the rows that are left of it, every batch would have its graphs recorded anew.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer


class ReusedCache(StaticCache):
    """transformers' cache of full size, for a model whose layers all keep the whole past.

    Keys and values of every batch, and of the rows that are left of it, begin at the same addresses. So the memory is
    that of the largest batch so far, and only a larger one takes other memory.
    """

    layers: Any  # `_ReusedLayer`s

    def __init__(self, config: Any) -> None:
        super().__init__(config=config, max_cache_len=0)
        self.layers = [_ReusedLayer(0) for _ in self.layers]

    def begin(self, capacity: int) -> None:
        """Forget the last batch; the next has up to `capacity` tokens a row, and the rows of what it writes first."""
        for layer in self.layers:
            layer.begin(capacity)

    def addresses(self) -> list[int]:
        """Where all that a step writes lies."""
        written = ((layer.keys, layer.values, layer.cumulative_length) for layer in self.layers)
        return [tensor.data_ptr() for tensors in written for tensor in tensors]

    def lengths(self) -> list[Tensor]:
        """A copy of how many tokens each layer holds a row."""
        return [layer.cumulative_length.clone() for layer in self.layers]

    def set_lengths(self, lengths: list[Tensor]) -> None:
        """Forget the tokens behind these."""
        for layer, length in zip(self.layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)


class _ReusedLayer(StaticLayer):
    """A layer whose keys and values `[R, H, capacity, D]` are the beginning of flat memory."""

    keys: Tensor
    values: Tensor

    def __init__(self, max_cache_len: int) -> None:
        super().__init__(max_cache_len)
        self.memory: list[Tensor] = []

    def begin(self, capacity: int) -> None:
        self.max_cache_len = capacity
        for memory in self.memory:
            memory.zero_()  # a masked place weighs nothing, unless an infinite value stayed in it
        self.cumulative_length.zero_()
        self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.memory:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.memory = [states.new_empty(0) for states in (key_states, value_states)]
            self.cumulative_length = self.cumulative_length.to(self.device)
            torch._dynamo.mark_static_address(self.cumulative_length)
        self.keys, self.values = self._laid_out(key_states, value_states)
        self.is_initialized = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        chosen = [states.index_select(0, beam_idx.to(self.device)) for states in (self.keys, self.values)]
        self.keys, self.values = self._laid_out(*chosen)
        self.keys.copy_(chosen[0])
        self.values.copy_(chosen[1])

    def _laid_out(self, *like: Tensor) -> list[Tensor]:
        """Keys and values with the rows, heads and sizes of these, at the beginning of the memory."""
        laid_out = []
        for number, states in enumerate(like):
            shape = (*states.shape[:2], self.max_cache_len, states.shape[3])
            entries = math.prod(shape)
            if len(self.memory[number]) < entries:
                self.memory[number] = states.new_zeros(entries)
            # `data`: to torch.compile it is a tensor of its own, and not a part of one that it must reckon with.
            laid_out.append(self.memory[number][:entries].view(shape).data)
            # torch records no CUDA graph of what writes into a tensor that is not marked so.
            torch._dynamo.mark_static_address(laid_out[-1])
        return laid_out
