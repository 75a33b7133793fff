"""The frozen head's one walk over the vocabulary on a GPU: `frozen.py` of this room in wide tiles.

Each tile is a product, a pass that turns logits into weights and their sums, and a product of the weights with W.
The same formulas and the same correction of the likeliest entries as there; what differs is the scale of the weights,
a power of two that starts at the policy's own logit of the reference's likeliest token (see `arithmetic`).

The gradient of the reverse KL takes another walk, in the backward pass (`frozen_reverse.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..learned_tokens import tokens_with_gradient
from ..types import Extra, Head, LearnedTokens, ReferenceSummary, TokenStats
from . import products
from .choice import operand_dtype
from .frozen_passes import weigh_tile, write_group_maxima, write_remainders
from .frozen_reverse import reverse_kl_gradient
from .row_passes import correct_and_normalise, write_exact_logits, write_row_dots

# How many of the reference's likeliest tokens are corrected; see `frozen.py` of this room.
LIKELIEST = 16
# Neighbours of which only the largest logit is kept while the likeliest are looked for.
GROUP = 64
# Half precision with five bits of exponent: weights are multiplied by UNIT before they are rounded, and a row whose
# weights exceed LIMIT gets another scale. The other dtypes reach as far as float32.
UNIT = {torch.float16: 64.0}
LIMIT = {torch.float16: 512.0}
FAR_LIMIT = 2.0**64
# Nats below which a difference of float64 numbers of the size of log Z says nothing.
RESOLUTION = 1e-12


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
            correct_and_normalise, hidden, head.weight, *head.weight.stride(), _bias_or(hidden, head), likeliest,
            self.computed, weights, self.shift, self.total, self.excess, self.expected, size,
            SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK,
            LIKELIEST=likeliest.shape[1], SLOTS=products.slots(likeliest.shape[1]), PAIR=pair,
            warps=products.ROW_WARPS, **options,
        )  # fmt: skip
        entropy = self.total.log() - self.excess / self.total
        log_z = self.total.log() + self.shift.double() * products.LN2
        return Walked(log_z, self.expected, entropy, likeliest)


def _bias_or(stand_in: Tensor, head: Head) -> Tensor:
    """The head's bias, or a tensor that stands where none is read."""
    return stand_in if head.bias is None else head.bias.contiguous()


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


def exact_logits(hidden: Tensor, head: Head, entries: Tensor) -> Tensor:
    """Logits `[N, K]` float64 of the entries `[N, K]`, without a matrix product."""
    entries = entries.int().contiguous()
    count = entries.shape[1]
    out = torch.empty(entries.shape, dtype=torch.float64, device=hidden.device)
    size = hidden.shape[1]
    products.launch(
        write_exact_logits, len(hidden), hidden.device,
        hidden, head.weight, *head.weight.stride(), _bias_or(hidden, head), entries, out, size,
        SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK,
        ENTRIES=count, SLOTS=products.slots(count), HAS_BIAS=head.bias is not None, SCALE=float(head.scale),
        warps=products.ROW_WARPS,
    )  # fmt: skip
    return out


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_d a·b of each row of `[N, D]`, float64 `[N]`."""
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty(len(a), dtype=torch.float64, device=a.device)
    size = a.shape[1]
    products.launch(
        write_row_dots, len(a), a.device, a, b, out, size,
        SIZE_BLOCKS=-(-size // products.SIZE_BLOCK), SIZE_BLOCK=products.SIZE_BLOCK, warps=products.ROW_WARPS,
    )  # fmt: skip
    return out


def summarize(hidden: Tensor, head: Head, targets: Tensor) -> ReferenceSummary:
    """`summarize_reference`: one walk, with the weights as pairs."""
    operand = hidden.to(operand_dtype(hidden, head.weight)).contiguous()
    with torch.autocast(hidden.device.type, enabled=False):
        unknown = operand.new_full((len(operand),), products.NO_SHIFT, dtype=torch.float32)
        walked = walk(operand, head, None, unknown, pair=True)
        offset = row_dot(walked.expected_weight, operand) - walked.log_z
        reference_logp = exact_logits(operand, head, targets[:, None])[:, 0] - walked.log_z
    return ReferenceSummary(walked.expected_weight, offset, reference_logp.float(), walked.likeliest, hidden)


def statistics(
    hidden: Tensor,
    head: Head,
    summary: ReferenceSummary,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`frozen_head_token_stats`: one walk; the entropy is detached, and extras that were not asked for are None."""
    dtype = operand_dtype(hidden, head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        logp, kl, reverse_kl, entropy = _FrozenHeadStats.apply(hidden, head, summary, targets, extras, learned, dtype)
    return TokenStats(
        logp,
        summary.reference_logp,
        kl,
        reverse_kl if "reverse_kl" in extras else None,
        entropy if "policy_entropy" in extras else None,
    )


class _FrozenHeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Head,
        summary: ReferenceSummary,
        targets: Tensor,
        extras: frozenset[Extra],
        learned: LearnedTokens,
        dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:
        operand = hidden.to(dtype).contiguous()
        own, shift = _named_logits(operand, head, summary.likeliest, targets)
        walked = walk(operand, head, _likeliest(summary, targets), shift, pair="reverse_kl" in extras)
        ctx.head, ctx.learned, ctx.operand_dtype, ctx.hidden_dtype = head, learned, dtype, hidden.dtype
        ctx.set_materialize_grads(False)  # a reverse KL that is only measured must cost nothing here
        kl = walked.log_z + summary.offset - row_dot(summary.expected_weight, operand)
        kl = torch.where(kl.abs() < RESOLUTION, 0.0, kl)
        reverse_kl, of_reverse = torch.zeros_like(kl), tuple[Tensor | None, ...]()
        if "reverse_kl" in extras:
            reverse_kl, reference_log_z = _reverse_kl(operand, walked, summary)
            of_reverse = hidden, summary.hidden, walked.log_z, reference_log_z, reverse_kl
        ctx.save_for_backward(walked.expected_weight, summary.expected_weight, targets, *of_reverse)
        out = [value.float() for value in (own - walked.log_z, kl, reverse_kl, walked.entropy)]
        ctx.mark_non_differentiable(*(out[3:] if "reverse_kl" in extras else out[2:]))
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, expected_reference, targets, *of_reverse = ctx.saved_tensors
        nothing = torch.zeros_like(expected[:, 0])
        d_logp, d_kl = (nothing if gradient is None else gradient for gradient in upstream[:2])
        own = ctx.head.weight[targets].to(ctx.operand_dtype).float().mul_(ctx.head.scale).sub_(expected)
        d_hidden = (expected - expected_reference).mul_(d_kl[:, None]).addcmul_(own, d_logp[:, None])
        if tokens := tokens_with_gradient(ctx.learned, {"reverse_kl": upstream[2]}, len(expected)):
            rows = slice(tokens.start, tokens.stop)
            hidden, reference_hidden, log_z, reference_log_z, reverse_kl, own_targets, gradient = (
                each[rows] for each in (*of_reverse, targets, upstream[2])
            )
            d_hidden[rows] += reverse_kl_gradient(
                hidden, reference_hidden, ctx.head, own_targets, log_z, reference_log_z, reverse_kl, gradient,
                ctx.operand_dtype,
            )  # fmt: skip
        return d_hidden.to(ctx.hidden_dtype), None, None, None, None, None, None


def _likeliest(summary: ReferenceSummary, targets: Tensor) -> Tensor:
    return targets.new_empty(len(targets), 0) if summary.likeliest is None else summary.likeliest


def _named_logits(hidden: Tensor, head: Head, likeliest: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' logits `[N]` float64, and the rows' first scales `[N]`: the logit of the reference's likeliest."""
    if likeliest is None or not likeliest.shape[1]:
        unknown = hidden.new_full((len(hidden),), products.NO_SHIFT, dtype=torch.float32)
        return exact_logits(hidden, head, targets[:, None])[:, 0], unknown
    named = exact_logits(hidden, head, torch.stack([targets.int(), likeliest[:, 0].int()], dim=1))
    power = (named[:, 1] / products.LN2).round()
    nothing = {"nan": products.NO_SHIFT, "posinf": products.NO_SHIFT, "neginf": products.NO_SHIFT}
    return named[:, 0].contiguous(), power.nan_to_num(**nothing).float()


def _reverse_kl(hidden: Tensor, walked: Walked, summary: ReferenceSummary) -> tuple[Tensor, Tensor]:
    """KL(p‖q) = logZ(h_ref) − logZ(h) + E_p[s·W]·(h − h_ref), the roles exchanged; and logZ(h_ref). `[N]` each."""
    assert summary.hidden is not None
    reference = summary.hidden.to(hidden.dtype)
    log_z_ref = row_dot(summary.expected_weight, reference) - summary.offset
    step = row_dot(walked.expected_weight, hidden) - row_dot(walked.expected_weight, reference)
    return log_z_ref - walked.log_z + step, log_z_ref
