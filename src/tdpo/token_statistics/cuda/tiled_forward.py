"""The any-head path's forward pass on a GPU: a walk over both models' tiles that leaves log Z and every statistic.

The Jensen–Shannon divergence takes a second one, once log Z of both is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Extra, Head, LearnedTokens, mixture_of
from . import products
from .tiled_passes import add_mixture, add_tile


@dataclass(frozen=True)
class Plan:
    """Everything about the call that is not a tensor needing a gradient."""

    policy_head: Head
    reference_head: Head
    extras: frozenset[Extra]
    learned: LearnedTokens
    policy_dtype: torch.dtype  # of the products' operands
    reference_dtype: torch.dtype

    def heads(self) -> dict[str, Any]:
        """What every pass must know of both heads when it is compiled."""
        return {
            "POLICY_BIAS": self.policy_head.bias is not None,
            "POLICY_SCALE": float(self.policy_head.scale),
            "POLICY_SOFTCAP": self.policy_head.softcap,
            "REFERENCE_BIAS": self.reference_head.bias is not None,
            "REFERENCE_SCALE": float(self.reference_head.scale),
            "REFERENCE_SOFTCAP": self.reference_head.softcap,
        }

    def mixture(self) -> float | None:
        """The weight of the Jensen–Shannon divergence, where that is an extra."""
        extra = mixture_of(self.extras)
        return None if extra is None else float(extra.weight)

    def named_extras(self) -> dict[str, Any]:
        """Which extras a pass computes, which it must know as well."""
        return {"REVERSE": "reverse_kl" in self.extras, "ENTROPY": "policy_entropy" in self.extras}


def tiles_of_both(
    hidden: Tensor, reference_hidden: Tensor, plan: Plan, width: int
) -> Iterator[tuple[products.Tile, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """The policy's tiles, each with what a pass reads: products, bias, the reference's products, its bias.

    All tiles lie in one pair of buffers. Where a head has no bias, another tensor stands in its place.

    Args:
        hidden: `[N, D]` in the plan's dtype.
        reference_hidden: `[K, D_ref]`, K ≤ N, in the plan's dtype; with K = 0 no product is made.
        width: columns of a tile.
    """
    columns = min(width, plan.policy_head.weight.shape[0])
    policy_logits, reference_logits = (
        rows.new_empty(len(rows) * columns, dtype=torch.float32) for rows in (hidden, reference_hidden)
    )
    heads = plan.policy_head, plan.reference_head
    bias, reference_bias = (None if head.bias is None else head.bias.contiguous() for head in heads)
    for tile, reference_tile in zip(
        products.tiles(plan.policy_head.weight, width, plan.policy_dtype),
        products.tiles(plan.reference_head.weight, width, plan.reference_dtype),
        strict=True,
    ):
        z = products.multiply(hidden, tile.weight.T, out=products.take(policy_logits, len(hidden), tile.columns))
        z_ref = products.take(reference_logits, len(reference_hidden), tile.columns)
        if len(reference_hidden):
            products.multiply(reference_hidden, reference_tile.weight.T, out=z_ref)
        here = slice(tile.start, tile.end)
        yield (
            tile,
            (z, z if bias is None else bias[here], z_ref, z if reference_bias is None else reference_bias[here]),
        )


class ForwardSums:
    """A row's sums over the vocabulary, as the forward passes gather them, and the statistics that they make."""

    # Columns of the table, in the order of these passes.
    NAMES = (
        "shift", "total", "reference_shift", "reference_total", "gap_q", "gap_p", "excess",
        "own", "reference_own", "policy_lacks", "reference_lacks", "apart", "jensen_shannon", "policy_to_mixture",
    )  # fmt: skip

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.table = torch.zeros(tokens, len(self.NAMES), dtype=torch.float64, device=device)
        self["shift"].fill_(products.NO_SHIFT)
        self["reference_shift"].fill_(products.NO_SHIFT)

    def __getitem__(self, name: str) -> Tensor:
        return self.table[:, self.NAMES.index(name)]

    def finish(self, extras: frozenset[Extra]) -> None:
        """Make the statistics of the first walk, float64 `[N]` each; 0 for the extras that were not asked for."""
        self.log_z = log_z_of(self["total"], self["shift"])
        self.reference_log_z = log_z_of(self["reference_total"], self["reference_shift"])
        apart = self["apart"].copy_(self.log_z - self.reference_log_z)
        self.policy_logp = self["own"] - self.log_z
        self.reference_logp = self["reference_own"] - self.reference_log_z
        forward_kl = self["gap_q"] / self["reference_total"] + apart
        self.forward_kl = forward_kl.masked_fill_(self["policy_lacks"] != 0, torch.inf)
        self.reverse_kl = self.entropy = torch.zeros_like(apart)
        if "reverse_kl" in extras:
            reverse_kl = -self["gap_p"] / self["total"] - apart
            self.reverse_kl = reverse_kl.masked_fill_(self["reference_lacks"] != 0, torch.inf)
        if "policy_entropy" in extras:
            self.entropy = self["total"].log() - self["excess"] / self["total"]


def log_z_of(total: Tensor, shift: Tensor) -> Tensor:
    """log Z of sums at the scale 2^shift."""
    return total.log() + shift * products.LN2


def walk_forward(hidden: Tensor, reference_hidden: Tensor, targets: Tensor, plan: Plan) -> ForwardSums:
    """The statistics of N tokens, whose hidden states may have any dtype."""
    tokens, vocabulary = hidden.shape[0], plan.policy_head.weight.shape[0]
    hidden, reference_hidden = hidden.to(plan.policy_dtype), reference_hidden.to(plan.reference_dtype)
    targets = targets.contiguous()
    size = hidden.shape[1] + reference_hidden.shape[1]
    width = products.tile_width(tokens, vocabulary, size, 8, products.free_bytes(hidden.device))
    sums = ForwardSums(tokens, hidden.device)
    for tile, both in tiles_of_both(hidden, reference_hidden, plan, width):
        products.launch(
            add_tile, tokens, hidden.device, *both, targets, sums.table, tile.columns, tile.start,
            **tile.blocks(products.PAIR_BLOCK), **plan.heads(), **plan.named_extras(),
        )  # fmt: skip
    sums.finish(plan.extras)
    if plan.mixture() is not None:
        for tile, both in tiles_of_both(hidden, reference_hidden, plan, width):
            products.launch(
                add_mixture, tokens, hidden.device, *both, sums.table, tile.columns,
                **tile.blocks(products.PAIR_BLOCK), **plan.heads(), MIXTURE=plan.mixture(),
            )  # fmt: skip
    return sums
