"""One walk over the vocabulary of a frozen head on a GPU: log Z, E[scale·W] and the entropy of N tokens.

Each tile is a product, a pass that turns logits into weights and their sums, and a product of the weights with W.
The same formulas and the same correction of the likeliest entries as in `frozen.py` of the parent room; what differs is
the scale of the weights, a power of two (see `arithmetic`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Head
from . import products
from .frozen_passes import weigh_tile, write_group_maxima, write_remainders
from .row_passes import correct_and_normalise
from .rows import bias_or

# How many of the reference's likeliest tokens are corrected; see `frozen.py` of this room.
LIKELIEST = 16
# Neighbours of which only the largest logit is kept while the likeliest are looked for.
GROUP = 64
# Half precision with five bits of exponent: weights are multiplied by UNIT before they are rounded, and a row whose
# weights exceed LIMIT gets another scale. The other dtypes reach as far as float32.
UNIT = {torch.float16: 64.0}
LIMIT = {torch.float16: 512.0}
FAR_LIMIT = 2.0**64


@dataclass(frozen=True)
class Walked:
    """What one walk over the vocabulary leaves of N tokens."""

    log_z: Tensor  # [N], float64
    expected_weight: Tensor  # E[scale·W] [N, D], float32
    entropy: Tensor  # [N], float64, nats
    likeliest: Tensor  # [N, K] int32, the tokens whose logits were corrected


def walk(hidden: Tensor, head: Head, likeliest: Tensor | None, shift: Tensor, *, pair: bool) -> Walked:
    """One walk over the tiles.

    Args:
        hidden: `[N, D]`, contiguous, in the dtype of the products' operands.
        likeliest: `[N, K]` int32, the entries to correct; None finds them.
        shift: `[N]` float32, the rows' scales to begin with; overwritten.
        pair: weights as two numbers of the operands' dtype, for an expectation that is used itself and not as a
            gradient only. One product more.
    """
    tokens, size = hidden.shape
    vocabulary = head.weight.shape[0]
    pair = pair and hidden.dtype != torch.float32
    width = products.tile_width(tokens, vocabulary, size, 4 + hidden.dtype.itemsize, products.free_bytes(hidden.device))
    room = tokens * min(width, vocabulary)
    logits = hidden.new_empty(room, dtype=torch.float32)
    weights = hidden.new_empty(room)
    peaks = _Peaks(head) if likeliest is None else None
    rows = _Rows.start(hidden, shift, likeliest)
    options = _options(head, hidden.dtype)
    bias = head.bias.contiguous() if head.bias is not None else None
    for tile in products.tiles(head.weight, width, hidden.dtype):
        z = products.multiply(hidden, tile.weight.T, out=products.take(logits, tokens, tile.columns))
        weight = products.take(weights, tokens, tile.columns)
        tile_bias = z if bias is None else bias[tile.start : tile.end]
        rows.weigh(z, tile_bias, weight, tile, options)
        if peaks is not None:
            peaks.look(z, tile_bias, tile)
        products.add_product(rows.expected, weight, tile.weight)
        if pair:
            rows.launch(
                write_remainders, z, tile_bias, weight, tile.columns, rows.shift,
                **tile.blocks(products.BLOCK), **options,
            )  # fmt: skip
            products.add_product(rows.expected, weight, tile.weight)
    if peaks is not None:
        rows.likeliest, rows.computed = peaks.entries()
    return rows.finish(hidden, head, weights, pair, options)


def _options(head: Head, dtype: torch.dtype) -> dict[str, Any]:
    """What every pass over logits must know of the head and of the weights' dtype."""
    return {"HAS_BIAS": head.bias is not None, "SCALE": float(head.scale), "UNIT": UNIT.get(dtype, 1.0)}


@dataclass
class _Rows:
    """The sums of N rows while they are gathered, each at the scale 2^shift of its row."""

    shift: Tensor  # [N] float32, whole numbers
    total: Tensor  # Σ p̃ [N] float64
    excess: Tensor  # Σ p̃·(z − shift·ln 2) [N] float64
    expected: Tensor  # Σ p̃·W [N, D] float32
    likeliest: Tensor  # [N, K] int32
    computed: Tensor  # the tiles' logits of the likeliest [N, K] float32

    @classmethod
    def start(cls, hidden: Tensor, shift: Tensor, likeliest: Tensor | None) -> _Rows:
        tokens = len(hidden)
        total = torch.zeros(tokens, dtype=torch.float64, device=hidden.device)
        if likeliest is None:
            likeliest = torch.empty(tokens, 0, dtype=torch.int32, device=hidden.device)
        expected = torch.zeros_like(hidden, dtype=torch.float32)
        computed = hidden.new_full(likeliest.shape, -torch.inf, dtype=torch.float32)
        return cls(shift, total, total.clone(), expected, likeliest.int().contiguous(), computed)

    def launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        products.launch(kernel, len(self.shift), self.shift.device, *arguments, **constants)

    def weigh(self, z: Tensor, bias: Tensor, weight: Tensor, tile: products.Tile, options: dict[str, Any]) -> None:
        size = self.expected.shape[1]
        self.launch(
            weigh_tile, z, bias, weight, tile.columns, tile.start, self.shift, self.total, self.excess,
            self.expected, size, self.likeliest, self.computed,
            **tile.blocks(products.BLOCK), SIZE_BLOCKS=-(-size // products.BLOCK),
            LIKELIEST=self.likeliest.shape[1], LIKELIEST_SLOTS=products.slots(self.likeliest.shape[1]),
            LIMIT=LIMIT.get(weight.dtype, FAR_LIMIT), **options,
        )  # fmt: skip

    def finish(self, hidden: Tensor, head: Head, weights: Tensor, pair: bool, options: dict[str, Any]) -> Walked:
        size, likeliest = hidden.shape[1], self.likeliest
        self.launch(
            correct_and_normalise, hidden, head.weight, *head.weight.stride(), bias_or(hidden, head), likeliest,
            self.computed, weights, self.shift, self.total, self.excess, self.expected, size,
            SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK,
            LIKELIEST=likeliest.shape[1], SLOTS=products.slots(likeliest.shape[1]), PAIR=pair,
            warps=products.ROW_WARPS, **options,
        )  # fmt: skip
        entropy = self.total.log() - self.excess / self.total
        log_z = self.total.log() + self.shift.double() * products.LN2
        return Walked(log_z, self.expected, entropy, likeliest)


class _Peaks:
    """The likeliest entries, found tile by tile: the 16 largest lie in the 16 groups with the largest maxima."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.values: Tensor | None = None
        self.ids: Tensor | None = None

    def look(self, z: Tensor, bias: Tensor, tile: products.Tile) -> None:
        group = min(GROUP, products.BLOCK)
        maxima = z.new_empty(len(z), -(-tile.columns // group))
        products.launch(
            write_group_maxima, len(z), z.device, z, bias, maxima, tile.columns, maxima.shape[1],
            BLOCKS=tile.blocks(products.BLOCK)["BLOCKS"], GROUPS=products.BLOCK // group, GROUP=group,
            HAS_BIAS=self.head.bias is not None, SCALE=float(self.head.scale),
        )  # fmt: skip
        groups = maxima.topk(min(LIKELIEST, maxima.shape[1]), dim=1).indices
        columns = (groups[:, :, None] * group + torch.arange(group, device=z.device)).flatten(1)
        beyond = columns >= tile.columns
        columns = columns.clamp_(max=tile.columns - 1)
        values = z.gather(1, columns)
        if self.head.bias is not None:
            values += bias[columns]
        if self.head.scale != 1.0:
            values *= self.head.scale
        self._keep(values.masked_fill_(beyond, -torch.inf), columns + tile.start)

    def _keep(self, values: Tensor, ids: Tensor) -> None:
        if self.values is not None and self.ids is not None:
            values, ids = torch.cat([self.values, values], dim=1), torch.cat([self.ids, ids], dim=1)
        self.values, places = values.topk(min(LIKELIEST, values.shape[1], self.head.weight.shape[0]), dim=1)
        self.ids = ids.gather(1, places)

    def entries(self) -> tuple[Tensor, Tensor]:
        """The entries `[N, K]` int32 and their logits `[N, K]` float32, largest first."""
        assert self.values is not None and self.ids is not None, "a vocabulary has entries"
        return self.ids.int().contiguous(), self.values.contiguous()
