"""Hidden states and heads on which the head's two fast paths are proven, and what watches their work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdpo import Head, TokenStats
from tdpo.token_statistics import Extra, MixtureTokenStats, tiles

EXTRAS: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")
FLOAT = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

# Every part of a head alone, then all at once; bias of an order that matters beside the logits.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": -1.7, "softcap": 2.5},
}


def make_head(kind: str, vocabulary: int, size: int, dtype: torch.dtype = torch.float64) -> Head:
    options = dict(KINDS[kind])
    bias = torch.randn(vocabulary).to(dtype) if options.pop("bias", False) else None
    return Head(torch.randn(vocabulary, size).to(dtype), bias, **options)


@dataclass
class Case:
    """Six tokens over a prime vocabulary of 23; the reference's hidden states are of another size."""

    hidden: Tensor
    head: Head
    reference_hidden: Tensor
    reference_head: Head
    targets: Tensor

    def arguments(self) -> tuple[Tensor, Head, Tensor, Head, Tensor]:
        return self.hidden, self.head, self.reference_hidden, self.reference_head, self.targets

    def leaves(self) -> list[Tensor]:
        """The policy's tensors, each requiring a gradient from now on."""
        tensors = [self.hidden, self.head.weight, *([] if self.head.bias is None else [self.head.bias])]
        return [tensor.requires_grad_() for tensor in tensors]


def make_case(kind: str = "plain", dtype: torch.dtype = torch.float64, tokens: int = 6) -> Case:
    torch.manual_seed(3)
    head, reference_head = make_head(kind, 23, 3, dtype), make_head(kind, 23, 5, dtype)
    hidden, reference_hidden = torch.randn(tokens, 3).to(dtype), torch.randn(tokens, 5).to(dtype)
    # The first and the last entry of the vocabulary, both sides of a tile's edge, one twice.
    targets = torch.tensor([0, 22, 4, 5, 11, 11])[:tokens]
    return Case(hidden, head, reference_hidden, reference_head, targets)


def use_tiles_of(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", width)
    monkeypatch.setattr(tiles, "MIN_TILE", 1)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns; with a dtype, of those that have it."""

    entries = 0

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and self.dtype in (None, leaf.dtype):
                self.entries = max(self.entries, leaf.numel())
        return out


class LivePeak(TorchDispatchMode):
    """Records the most bytes that were held at once by tensors made within, as a GPU's allocator would.

    `leaving_out` gives a function whose own tensors do not count: those that only a CPU needs.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {StorageWeakRef(tensor.untyped_storage()): 0 for tensor in before}
        self.peak, self.counts = 0, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.counts:
            for leaf in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
                self.held.setdefault(StorageWeakRef(leaf.untyped_storage()), leaf.untyped_storage().nbytes())
            self.held = {storage: held for storage, held in self.held.items() if not storage.expired()}
            self.peak = max(self.peak, sum(self.held.values()))
        return out

    def leaving_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def uncounted(*args: Any, **kwargs: Any) -> Any:
            self.counts = False
            try:
                return function(*args, **kwargs)
            finally:
                self.counts = True

        return uncounted


def differentiable(stats: TokenStats) -> list[Tensor]:
    mixture = stats.jensen_shannon if isinstance(stats, MixtureTokenStats) else None
    values = [stats.policy_logp, stats.forward_kl, stats.reverse_kl, stats.policy_entropy, mixture]
    return [value for value in values if value is not None]


def weighted_sum(stats: TokenStats) -> Tensor:
    """A loss that gives every statistic of every token its own weight."""
    outputs = torch.stack(differentiable(stats))
    return (outputs * torch.linspace(-1, 2, outputs.numel()).view_as(outputs).to(outputs.dtype)).sum()


def gradients(leaves: list[Tensor], stats: TokenStats) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted_sum(stats), leaves)
