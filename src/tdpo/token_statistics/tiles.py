"""The vocabulary in tiles: their edges, their logits, and what is accumulated while a walk goes over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .learned_tokens import READ_FREELY
from .products import Workspace, wide_product
from .types import Head

# Wide tiles read each weight once per pass and keep the matrix products efficient. A tile holds [N, TILE] logits, so
# for very long batches it narrows until these are about 8 Mi entries. A tile twice as wide was no faster and held
# twice the memory.
TILE = 1024
TILE_ENTRIES = 1 << 23
MIN_TILE = 512


def tile_bounds(tokens: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """The edges (start, end) of the vocabulary's tiles for a batch of `tokens`; an end is not in its tile."""
    width = max(MIN_TILE, min(TILE, TILE_ENTRIES // max(tokens, 1)))
    for start in range(0, vocabulary, width):
        yield start, min(start + width, vocabulary)


def tile_logits(
    hidden: Tensor, head: Head, start: int, end: int, work: Workspace | None = None, name: str = "logits"
) -> Tensor:
    """Logits `[N, end − start]` of one tile, float32 or float64, in the buffer `name` of `work` where that is given."""
    z = wide_product(hidden, head.weight[start:end].T, work, name)
    if head.bias is not None:
        z += head.bias[start:end]
    if head.scale != 1.0:
        z *= head.scale
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap)
    return z


def masks_vocabulary(head: Head) -> bool:
    """Whether a bias of −inf may take entries out of the vocabulary, so that differences of logits could be NaN."""
    if head.bias is None:
        return False
    return head.bias.device.type not in READ_FREELY or not bool(torch.isfinite(head.bias).all())


@dataclass
class Accumulator:
    """Running log-sum-exp of N rows: the largest logit so far, and the sum of exp(logit − maximum), `[N]` each."""

    maximum: Tensor
    total: Tensor

    @classmethod
    def start(cls, tokens: int, like: Tensor) -> Accumulator:
        # The smallest finite number instead of −inf: a tile of −inf only must not give −inf − −inf.
        lowest = torch.finfo(like.dtype).min
        maximum = like.new_full((tokens,), lowest)
        return cls(maximum, torch.zeros(tokens, dtype=torch.float64, device=like.device))

    def raise_maximum(self, z: Tensor) -> Tensor:
        """Update the maximum with a tile's logits; returns the factor `[N]` by which earlier sums shrink."""
        higher = torch.maximum(self.maximum, z.amax(dim=1))
        shrink = (self.maximum.double() - higher.double()).exp()
        self.maximum = higher
        self.total *= shrink
        return shrink

    def exponentials(self, z: Tensor) -> Tensor:
        """exp(z − maximum), computed in place of z and added to the total."""
        z.sub_(self.maximum[:, None]).exp_()
        self.total += z.sum(dim=1)
        return z

    def log_z(self) -> Tensor:
        """log Σ exp(logit) of each row, float64 `[N]`."""
        return self.maximum.double() + self.total.log()


def weighted_row_sum(weight: Tensor, value: Tensor) -> Tensor:
    """Σ_v weight·value per row, overwriting `value`; float64 `[N]`."""
    return value.mul_(weight).sum(dim=1).double()


def own_entry(ids: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Whether each of `ids` lies in the tile, and its column there (if not, any column); both in the shape of `ids`."""
    return (ids >= start) & (ids < end), (ids - start).clamp(0, end - start - 1)
