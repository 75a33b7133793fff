"""`linear_token_stats` on a GPU, for any two heads: `tiled.py` of this room in wide tiles.

Forward, a tile is two products and one pass; backward, it is recomputed, turned into its gradient by one pass, and
contracted by one product with the head and one with the hidden states. The formulas are those of `tiled.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..learned_tokens import tokens_with_gradient
from ..types import Extra, Head, LearnedTokens, TokenStats
from . import products
from .choice import operand_dtype
from .tiled_passes import add_tile, write_tile_gradient


@dataclass(frozen=True)
class _Plan:
    """Everything about the call that is not a tensor needing a gradient."""

    policy_head: Head
    reference_head: Head
    extras: frozenset[Extra]
    learned: LearnedTokens
    policy_dtype: torch.dtype  # of the products' operands
    reference_dtype: torch.dtype

    def constants(self) -> dict[str, Any]:
        """What both passes must know when they are compiled."""
        return {
            "POLICY_BIAS": self.policy_head.bias is not None,
            "POLICY_SCALE": float(self.policy_head.scale),
            "POLICY_SOFTCAP": self.policy_head.softcap,
            "REFERENCE_BIAS": self.reference_head.bias is not None,
            "REFERENCE_SCALE": float(self.reference_head.scale),
            "REFERENCE_SOFTCAP": self.reference_head.softcap,
        }


def linear_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`linear_token_stats`, in tiles both ways."""
    dtypes = operand_dtype(policy_hidden, policy_head.weight), operand_dtype(reference_hidden, reference_head.weight)
    plan = _Plan(policy_head, reference_head, extras, learned, *dtypes)
    with torch.autocast(policy_hidden.device.type, enabled=False):
        outputs = _TiledTokenStats.apply(
            policy_hidden, policy_head.weight, policy_head.bias, reference_hidden.detach(), targets, plan
        )
    policy_logp, reference_logp, forward_kl, reverse_kl, entropy = outputs
    return TokenStats(
        policy_logp,
        reference_logp,
        forward_kl,
        reverse_kl if "reverse_kl" in extras else None,
        entropy if "policy_entropy" in extras else None,
    )


class _TiledTokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reference_hidden: Tensor,
        targets: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, ...]:
        sums = _walk_forward(hidden, reference_hidden, targets, plan)
        ctx.save_for_backward(
            hidden, weight, bias, reference_hidden, targets, sums.table, sums.reverse_kl, sums.entropy
        )
        ctx.plan = plan
        ctx.set_materialize_grads(False)  # None says of a statistic that nothing is learned from it
        out = [
            value.float()
            for value in (sums.policy_logp, sums.reference_logp, sums.forward_kl, sums.reverse_kl, sums.entropy)
        ]
        ctx.mark_non_differentiable(out[1])
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Weight and bias are saved only for autograd's check that nothing changed them in place since.
        hidden, _weight, _bias, reference_hidden, targets, *saved = ctx.saved_tensors
        d_logp, _, *d_others = upstream
        with torch.autocast(hidden.device.type, enabled=False):
            walk = _BackwardWalk(hidden, reference_hidden, targets, ctx.plan, saved, (d_logp, *d_others))
            grads = walk.run(*ctx.needs_input_grad[:3])
        return (*grads, None, None, None)


class _Sums:
    """A row's sums over the vocabulary, as `add_tile` gathers them, and the statistics that they make."""

    # Columns of the table, in the order of `add_tile`.
    NAMES = (
        "shift", "total", "reference_shift", "reference_total", "gap_q", "gap_p", "excess",
        "own", "reference_own", "policy_lacks", "reference_lacks",
    )  # fmt: skip

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.table = torch.zeros(tokens, len(self.NAMES), dtype=torch.float64, device=device)
        self["shift"].fill_(products.NO_SHIFT)
        self["reference_shift"].fill_(products.NO_SHIFT)

    def __getitem__(self, name: str) -> Tensor:
        return self.table[:, self.NAMES.index(name)]

    def finish(self, extras: frozenset[Extra]) -> None:
        """Make the statistics, float64 `[N]` each; 0 for the extras that were not asked for."""
        self.log_z = _log_z(self["total"], self["shift"])
        self.reference_log_z = _log_z(self["reference_total"], self["reference_shift"])
        apart = self.log_z - self.reference_log_z
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


def _log_z(total: Tensor, shift: Tensor) -> Tensor:
    return total.log() + shift * products.LN2


def _walk_forward(hidden: Tensor, reference_hidden: Tensor, targets: Tensor, plan: _Plan) -> _Sums:
    tokens, vocabulary = hidden.shape[0], plan.policy_head.weight.shape[0]
    hidden, reference_hidden = hidden.to(plan.policy_dtype), reference_hidden.to(plan.reference_dtype)
    targets = targets.contiguous()
    size = hidden.shape[1] + reference_hidden.shape[1]
    width = products.tile_width(tokens, vocabulary, size, 8, products.free_bytes(hidden.device))
    room = tokens * min(width, vocabulary)
    policy_logits = hidden.new_empty(room, dtype=torch.float32)
    reference_logits = hidden.new_empty(room, dtype=torch.float32)
    biases = _Biases(plan)
    sums = _Sums(tokens, hidden.device)
    for tile, reference_tile in zip(
        products.tiles(plan.policy_head.weight, width, plan.policy_dtype),
        products.tiles(plan.reference_head.weight, width, plan.reference_dtype),
        strict=True,
    ):
        z = products.multiply(hidden, tile.weight.T, out=products.take(policy_logits, tokens, tile.columns))
        z_ref = products.take(reference_logits, tokens, tile.columns)
        products.multiply(reference_hidden, reference_tile.weight.T, out=z_ref)
        products.launch(
            add_tile, tokens, hidden.device, z, biases.policy(tile, z), z_ref, biases.reference(tile, z), targets,
            sums.table, tile.columns, tile.start, **tile.blocks(products.PAIR_BLOCK),
            REVERSE="reverse_kl" in plan.extras, ENTROPY="policy_entropy" in plan.extras, **plan.constants(),
        )  # fmt: skip
    sums.finish(plan.extras)
    return sums


class _Biases:
    """The two heads' biases, contiguous, tile by tile; another tensor stands where a pass reads none."""

    def __init__(self, plan: _Plan) -> None:
        heads = plan.policy_head, plan.reference_head
        self.both = [None if head.bias is None else head.bias.contiguous() for head in heads]

    def policy(self, tile: products.Tile, stand_in: Tensor) -> Tensor:
        return stand_in if self.both[0] is None else self.both[0][tile.start : tile.end]

    def reference(self, tile: products.Tile, stand_in: Tensor) -> Tensor:
        return stand_in if self.both[1] is None else self.both[1][tile.start : tile.end]


class _BackwardWalk:
    """The backward pass: recompute each tile, turn it into its gradient, contract it."""

    def __init__(
        self,
        hidden: Tensor,
        reference_hidden: Tensor,
        targets: Tensor,
        plan: _Plan,
        saved: list[Tensor],
        upstream: tuple[Tensor | None, ...],
    ) -> None:
        self.plan, self.hidden_dtype = plan, hidden.dtype
        of_kls = {"forward_kl": upstream[1], "reverse_kl": upstream[2]}
        with_reference = tokens_with_gradient(plan.learned, of_kls, len(hidden))
        self.hidden, self.targets = hidden.to(plan.policy_dtype), targets.contiguous()
        self.reference_hidden = reference_hidden[with_reference.start : with_reference.stop].to(plan.reference_dtype)
        self.coefficients = self._coefficients(saved, upstream, with_reference)

    @staticmethod
    def _coefficients(saved: list[Tensor], upstream: tuple[Tensor | None, ...], with_reference: range) -> Tensor:
        """What `write_tile_gradient` must know of each row, in its order: float64 `[N, 11]`."""
        table, reverse_kl, entropy = saved
        nothing = torch.zeros_like(entropy)
        d_logp, d_forward, d_reverse, d_entropy = (nothing if g is None else g.double() for g in upstream)
        place = torch.arange(len(table), dtype=torch.float64, device=table.device) - with_reference.start
        place[: with_reference.start] = place[with_reference.stop :] = -1
        shift, total, reference_shift, reference_total = table[:, :4].unbind(1)
        log_z, reference_log_z = _log_z(total, shift), _log_z(reference_total, reference_shift)
        return torch.stack(
            [
                shift, total, reference_shift, reference_total, d_logp, d_forward, d_reverse,
                reference_log_z - log_z - reverse_kl, d_entropy, entropy - log_z, place,
            ],
            dim=1,
        )  # fmt: skip

    def run(
        self, needs_hidden: bool, needs_weight: bool, needs_bias: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        head = self.plan.policy_head
        d_hidden = torch.zeros_like(self.hidden, dtype=torch.float32) if needs_hidden else None
        d_weight = torch.empty_like(head.weight) if needs_weight else None
        d_bias = torch.empty_like(head.bias) if needs_bias and head.bias is not None else None
        for tile, gradient in self._tile_gradients():
            if d_bias is not None:
                d_bias[tile.start : tile.end] = gradient.sum(dim=0, dtype=torch.float32)
            if d_hidden is not None:
                products.add_product(d_hidden, gradient, tile.weight)
            if d_weight is not None:
                products.narrow_product(gradient.T, self.hidden, out=d_weight[tile.start : tile.end])
        if d_hidden is not None:
            d_hidden = d_hidden.to(self.hidden_dtype)
        return d_hidden, d_weight, d_bias

    def _tile_gradients(self) -> Iterator[tuple[products.Tile, Tensor]]:
        """(tile, d loss / d(h·weightᵀ + bias) `[N, columns]` in the operands' dtype), tile by tile in one buffer."""
        plan, tokens, k = self.plan, len(self.hidden), len(self.reference_hidden)
        vocabulary = plan.policy_head.weight.shape[0]
        size = 2 * self.hidden.shape[1] + self.reference_hidden.shape[1]
        entry_bytes = 8 + self.hidden.dtype.itemsize
        width = products.tile_width(tokens, vocabulary, size, entry_bytes, products.free_bytes(self.hidden.device))
        columns = min(width, vocabulary)
        policy_logits = self.hidden.new_empty(tokens * columns, dtype=torch.float32)
        reference_logits = self.hidden.new_empty(k * columns, dtype=torch.float32)
        gradients = self.hidden.new_empty(tokens * columns)
        biases = _Biases(plan)
        for tile, reference_tile in zip(
            products.tiles(plan.policy_head.weight, width, plan.policy_dtype),
            products.tiles(plan.reference_head.weight, width, plan.reference_dtype),
            strict=True,
        ):
            z = products.multiply(self.hidden, tile.weight.T, out=products.take(policy_logits, tokens, tile.columns))
            z_ref = products.take(reference_logits, k, tile.columns)
            if k:
                products.multiply(self.reference_hidden, reference_tile.weight.T, out=z_ref)
            gradient = products.take(gradients, tokens, tile.columns)
            products.launch(
                write_tile_gradient, tokens, z.device, z, biases.policy(tile, z), z_ref, biases.reference(tile, z),
                self.targets, self.coefficients, gradient, tile.columns, tile.start, **tile.blocks(products.PAIR_BLOCK),
                REVERSE="reverse_kl" in plan.extras, ENTROPY="policy_entropy" in plan.extras, **plan.constants(),
            )  # fmt: skip
            yield tile, gradient
