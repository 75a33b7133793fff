"""A batch of sequences inside a causal language model, fed a few tokens at a time: the model's side of `generation`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class DecodingBatch:
    """The key-value cache of up to `capacity` tokens a row, and the mask `[B, T]` of which cached tokens count."""

    def __init__(self, model: Any, capacity: int) -> None:
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.accepted = set(inspect.signature(base.forward).parameters)
        self.cache: Any = DynamicCache(config=model.config)
        plain = [type(layer) is DynamicLayer for layer in self.cache.layers]
        self.attends_to_all = all(plain)
        self.cache.layers = [
            _RoomyLayer(capacity) if is_plain else layer
            for is_plain, layer in zip(plain, self.cache.layers, strict=True)
        ]
        self.mask = torch.ones((1, 0), dtype=torch.long, device=model.device)

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Encode the prompts, left-padded; `[B, V]` logits of each one's first new token.

        What all of them begin with (a system prompt, usually) is encoded once, and the padding then lies between that
        and the rest. Only where every layer attends to the whole past: a sliding window would count the padding.
        """
        shared = _common_prefix(prompts) if self.attends_to_all and len(prompts) > 1 else 0
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=self.model.device)
            self.feed(prefix, torch.ones_like(prefix))
            self.select([0] * len(prompts))
        rests = [ids[shared:] for ids in prompts]
        width = max(map(len, rests))
        padded = [[rest[0]] * (width - len(rest)) + rest for rest in rests]
        mask = [[0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        return self.feed(torch.tensor(padded, device=self.model.device), torch.tensor(mask, device=self.model.device))

    def feed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Append `[B, T]` tokens, those that count marked by `mask`; `[B, V]` logits after the last of each row."""
        before = self.mask.expand(len(mask), -1)
        self.mask = torch.cat([before, mask], dim=1)
        arguments: dict[str, Any] = {"attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.accepted:  # models with relative biases take none
            arguments["position_ids"] = (before.sum(-1, keepdim=True) + mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self.accepted:
            # As an index and not as the number 1, which gives the head a slice of states with gaps in between: PyTorch
            # multiplies those with frozen weights row by row, and in bfloat16 copies the whole head for every row.
            arguments["logits_to_keep"] = torch.tensor([input_ids.shape[1] - 1], device=input_ids.device)
        return self.model(input_ids=input_ids, **arguments).logits[:, -1]

    def select(self, slots: list[int]) -> None:
        """Make the batch consist of these of its rows, in this order, repeated or left out."""
        if slots != list(range(len(self.mask))):
            index = torch.tensor(slots, device=self.mask.device)
            self.cache.reorder_cache(index)
            self.mask = self.mask[index]


class _RoomyLayer(DynamicLayer):
    """A layer of the cache with room for `capacity` tokens, written in place: appending copies only what is new."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.rooms: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self.is_initialized:
            self.rooms = [states.new_empty(*states.shape[:2], self.capacity, states.shape[3]) for states in new]
            self._show(0)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, states in zip(self.rooms, new, strict=True):
            room[:, :, start:end] = states
        return self._show(end)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        length = self.get_seq_length()
        self.rooms = [room.index_select(0, beam_idx.to(room.device)) for room in self.rooms]
        self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        return self.keys, self.values


def _common_prefix(prompts: list[list[int]]) -> int:
    """Number of leading tokens that all share, leaving each at least one of its own."""
    first, last, limit = min(prompts), max(prompts), min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)
