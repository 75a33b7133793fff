"""The any-head path's backward pass on a GPU: it recomputes each tile and contracts its gradient at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..learned_tokens import KLS, tokens_with_gradient
from . import products
from .tiled_forward import Plan, log_z_of, tiles_of_both
from .tiled_passes import write_tile_gradient


class BackwardWalk:
    """The backward pass: recompute each tile, turn it into its gradient, contract it.

    `saved` are the forward pass's table, of which the first four columns are read, the reverse KL, the entropy and
    KL(p‖m); `upstream` the gradients of policy_logp, forward_kl, reverse_kl, policy_entropy and jensen_shannon, `[N]`
    each or None.
    """

    def __init__(
        self,
        hidden: Tensor,
        reference_hidden: Tensor,
        targets: Tensor,
        plan: Plan,
        saved: list[Tensor],
        upstream: tuple[Tensor | None, ...],
    ) -> None:
        self.plan, self.hidden_dtype = plan, hidden.dtype
        of_kls = dict(zip(KLS, (upstream[1], upstream[2], upstream[4]), strict=True))
        with_reference = tokens_with_gradient(plan.learned, of_kls, len(hidden))
        self.hidden, self.targets = hidden.to(plan.policy_dtype), targets.contiguous()
        self.reference_hidden = reference_hidden[with_reference.start : with_reference.stop].to(plan.reference_dtype)
        self.coefficients = self._coefficients(saved, upstream, with_reference)

    @staticmethod
    def _coefficients(saved: list[Tensor], upstream: tuple[Tensor | None, ...], with_reference: range) -> Tensor:
        """What `write_tile_gradient` must know of each row, in its order: float64 `[N, 14]`."""
        table, reverse_kl, entropy, policy_to_mixture = saved
        nothing = torch.zeros_like(entropy)
        d_logp, d_forward, d_reverse, d_entropy, d_mixture = (nothing if g is None else g.double() for g in upstream)
        place = torch.arange(len(table), dtype=torch.float64, device=table.device) - with_reference.start
        place[: with_reference.start] = place[with_reference.stop :] = -1
        shift, total, reference_shift, reference_total = table[:, :4].unbind(1)
        log_z, reference_log_z = log_z_of(total, shift), log_z_of(reference_total, reference_shift)
        return torch.stack(
            [
                shift, total, reference_shift, reference_total, d_logp, d_forward, d_reverse,
                reference_log_z - log_z - reverse_kl, d_entropy, entropy - log_z, place,
                d_mixture, log_z - reference_log_z, policy_to_mixture,
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
        plan, tokens = self.plan, len(self.hidden)
        vocabulary = plan.policy_head.weight.shape[0]
        size = 2 * self.hidden.shape[1] + self.reference_hidden.shape[1]
        entry_bytes = 8 + self.hidden.dtype.itemsize
        width = products.tile_width(tokens, vocabulary, size, entry_bytes, products.free_bytes(self.hidden.device))
        gradients = self.hidden.new_empty(tokens * min(width, vocabulary))
        for tile, both in tiles_of_both(self.hidden, self.reference_hidden, plan, width):
            gradient = products.take(gradients, tokens, tile.columns)
            products.launch(
                write_tile_gradient, tokens, gradient.device, *both, self.targets, self.coefficients, gradient,
                tile.columns, tile.start, **tile.blocks(products.PAIR_BLOCK), **plan.heads(), **plan.named_extras(),
                MIXTURE=plan.mixture(),
            )  # fmt: skip
            yield tile, gradient
