"""A batch of sequences inside a causal language model, fed a few tokens at a time: the model's side of sampling.

There are several ways of doing that, from the fastest to the surest; `decoding_ways` asks a model which it can take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from .compiled_steps import compiled_step
from .recorded_steps import RecordedSteps
from .reused_cache import ReusedCache


@dataclass(frozen=True)
class Way:
    """How sequences go through a model.

    Args:
        state: what stands for the earlier tokens of a sequence: "cache" is transformers' cache, "own" is what the model
            makes for itself, and with "none" every step computes whole sequences.
        pads: rows of different lengths may share a batch, padded on the left.
        shares_prefix: the common beginning of all prompts of a batch is encoded once; the padding then lies behind it.
        steps: how steps of one token a row are taken. For those that are not "plain" the cache has its full size from
            the beginning, so that every step has the shape of the last one and can be recorded (`recorded_steps.py`) or
            compiled (`compiled_steps.py`).
    """

    state: Literal["cache", "own", "none"] = "cache"
    pads: bool = True
    shares_prefix: bool = False
    steps: Literal["plain", "recorded", "compiled"] = "plain"

    @property
    def is_static(self) -> bool:
        """Whether the cache has its full size from the beginning."""
        return self.steps != "plain"


class DecodingBatch:
    """The state of up to `capacity` tokens in each of R rows, and the mask `[R, T]` of which of them count.

    With `way.is_static` the state lies in `cache`, which serves one batch at a time, with what is recorded of its steps
    in `recorded`. Without them, as in a probe, the batch has its own.
    """

    def __init__(
        self,
        model: Any,
        capacity: int,
        way: Way,
        cache: ReusedCache | None = None,
        recorded: RecordedSteps | None = None,
    ) -> None:
        self.model, self.way, self.recorded = model, way, recorded
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.parameters = set(inspect.signature(base.forward).parameters)
        self.name = next((name for name in STATE_NAMES if name in self.parameters), None)
        if way.state != "none" and self.name is None:
            raise NotImplementedError(f"{type(base).__name__} takes no state of earlier tokens")
        self.state: Any = None
        if way.is_static:
            self.state = ReusedCache(model.config) if cache is None else cache
            self.state.begin(capacity)
        elif way.state == "cache":
            self.state = roomy_cache(model.config, capacity)
        self.run: Callable[..., Any] = model
        self.capacity, self.filled = capacity, 0
        self.mask = torch.ones((1, 0), dtype=torch.long, device=model.device)
        self.ids = self.mask  # of whole sequences, where no state stands for them

    def prefill(self, prompts: list[list[int]]) -> Tensor:
        """Encode the prompts, padded on the left; returns the logits `[R, V]` of each one's first new token."""
        shared = _common_prefix(prompts) if self.way.shares_prefix and len(prompts) > 1 else 0
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=self.model.device)
            self.feed(prefix, torch.ones_like(prefix))
            self.select([0] * len(prompts))
        rests = [ids[shared:] for ids in prompts]
        width = max(map(len, rests))
        assert self.way.pads or width == min(map(len, rests))
        padded = [[rest[0]] * (width - len(rest)) + rest for rest in rests]
        mask = [[0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        logits = self.feed(torch.tensor(padded, device=self.model.device), torch.tensor(mask, device=self.model.device))
        # For one token a row; a prompt has as many as it has.
        if self.way.steps == "compiled":
            self.run = compiled_step(self.model)
        elif self.way.steps == "recorded":
            self.run = self.recorded or RecordedSteps(self.model, is_probe=True)
        return logits

    def feed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Append tokens `[R, T]`, of which `mask` marks those that count; returns logits `[R, V]` after the last."""
        before = self.mask.expand(len(mask), -1)
        self.mask = self._filled_up(before, mask) if self.way.is_static else torch.cat([before, mask], dim=1)
        arguments: dict[str, Any] = {"attention_mask": self.mask, "use_cache": self.way.state != "none"}
        if self.way.state == "none":
            self.ids = input_ids = torch.cat([self.ids.expand(len(mask), -1), input_ids], dim=1)
        else:
            arguments[str(self.name)] = self.state
            if self.name != STATE_NAMES[0]:
                arguments["attention_mask"] = mask  # a recurrent state needs no mask of what lies behind it
            if "position_ids" in self.parameters:  # models with relative biases take none
                arguments["position_ids"] = (before.sum(-1, keepdim=True) + mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self.parameters:
            # As an index and not as the number 1, which gives the head a slice of states with gaps in between: PyTorch
            # multiplies those with frozen weights row by row, and in bfloat16 copies the whole head for every row.
            arguments["logits_to_keep"] = torch.tensor([input_ids.shape[1] - 1], device=input_ids.device)
        output = self.run(input_ids=input_ids, **arguments)
        if self.way.state == "own":
            self.state = getattr(output, str(self.name))
            if self.state is None:
                raise NotImplementedError("the model gives no state back")
        logits: Tensor = output.logits
        return logits[:, -1]

    def _filled_up(self, before: Tensor, mask: Tensor) -> Tensor:
        """The mask of all places of a static cache `[R, capacity]`, those that are not filled yet included."""
        end = self.filled + mask.shape[1]
        if not self.filled:
            before = before.new_zeros(len(mask), self.capacity)
        whole = before.clone()
        whole[:, self.filled : end] = mask
        self.filled = end
        return whole

    def select(self, slots: list[int]) -> None:
        """Make the batch consist of these of its rows, in this order, repeated or left out."""
        rows = len(self.mask)
        if slots == list(range(rows)):
            return
        index = torch.tensor(slots, device=self.mask.device)
        if self.way.state == "cache":
            self.state.reorder_cache(index)
        elif self.way.state == "own":
            self.state = _selected(self.state, index, rows)
        else:
            self.ids = self.ids[index]
        self.mask = self.mask[index]


STATE_NAMES = ("past_key_values", "cache_params", "state")  # of attention and hybrids, Mamba's, RWKV's


def roomy_cache(config: Any, capacity: int) -> Any:
    """A key-value cache that holds `capacity` tokens a row without growing, where it is one of plain attention."""
    cache: Any = DynamicCache(config=config)
    cache.layers = [_RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_all_keys(config: Any) -> bool:
    """Whether every layer's cache keeps the whole past. A sliding window would count padding between tokens, and a
    recurrent state would fade over it."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


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


def _selected(state: Any, index: Tensor, rows: int) -> Any:
    """A model's own state with these rows: every tensor in it whose first dimension counts the rows."""
    if isinstance(state, Tensor):
        return state.index_select(0, index.to(state.device)) if state.dim() > 1 and len(state) == rows else state
    if isinstance(state, dict):
        return {key: _selected(value, index, rows) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([_selected(value, index, rows) for value in state])
    if hasattr(state, "__dict__") and not hasattr(state, "to_dict"):  # a cache, and not the configuration in it
        for name, value in vars(state).items():
            setattr(state, name, _selected(value, index, rows))
    return state


def _common_prefix(prompts: list[list[int]]) -> int:
    """Number of leading tokens that all share, leaving each at least one of its own."""
    first, last, limit = min(prompts), max(prompts), min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)
