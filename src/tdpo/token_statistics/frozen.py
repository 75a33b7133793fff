"""The frozen head path: policy and reference share one frozen head, and the reference is a few vectors a token.

For logits z = s·(W·h + b), log Z(h) = logsumexp(z) is convex in h with gradient E_p[s·W], and

    KL(q‖p) = logZ(h) − logZ(h_ref) − e·(h − h_ref),   e = E_q[s·W]

is its Bregman divergence. With the bias the same holds, E_q[s·b] cancelling between the two logits.

Two numbers of size |logZ| that differ by a KL of 1e-3 leave float32 products no room for error: what a
product rounds off the likeliest logits goes straight into log Z, and into e. Those few logits are therefore
corrected to float64 in both. They are those of the reference's likeliest tokens, which are also the policy's
likeliest as long as the KL is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .frozen_reverse import reverse_kl_gradient
from .learned_tokens import narrowed, tokens_with_gradient
from .products import Workspace, add_wide_product
from .tiles import Accumulator, tile_bounds, tile_logits
from .types import Extra, Head, LearnedTokens, ReferenceSummary, TokenStats

# How many of the reference's likeliest tokens are corrected. With 16 the median error is at most two thirds of the
# naive code's on every distribution tried (benchmarks/precision.py), with 8 equal to it on some; 32 buy little more.
LIKELIEST = 16
# How many float64 numbers are held at once where the work goes piece by piece over the tokens: few enough for the cache
# of a CPU, and enough to keep a GPU busy.
PIECE_ENTRIES = {"cpu": 1 << 18}
PIECE_ENTRIES_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Walked:
    """What one walk over the vocabulary computes for N tokens."""

    log_z: Tensor  # [N], float64
    expected_weight: Tensor  # E[s·W] [N, D], float32 or float64
    expected_bias: Tensor  # E[s·b] [N], float64
    likeliest: Tensor  # [N, K], the tokens whose logits were corrected


def walk(hidden: Tensor, head: Head, likeliest: Tensor | None = None) -> Walked:
    """Walk over the tiles once. `likeliest` names the tokens whose logits are corrected; None has the walk find them,
    which takes a sixth more time."""
    tokens = hidden.shape[0]
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    expected = hidden.new_zeros(hidden.shape, dtype=wide)
    expected_bias = torch.zeros(tokens, dtype=torch.float64, device=hidden.device)
    sums = Accumulator.start(tokens, expected)
    peaks = _Peaks() if likeliest is None else _Named(likeliest, head.weight.shape[0])
    work = Workspace()
    for start, end in tile_bounds(tokens, head.weight.shape[0]):
        z = tile_logits(hidden, head, start, end, work)
        peaks.add_tile(z, start, end)
        shrink = sums.raise_maximum(z)
        # The weights stay wide: rounded to bf16 they would put first-order errors into a second-order KL.
        weights = sums.exponentials(z)
        _shrink_rows(expected, shrink)
        add_wide_product(expected, weights, head.weight[start:end], work)
        if head.bias is not None:
            bias = head.bias[start:end].to(wide).nan_to_num(neginf=0.0)  # what is masked has no weight
            expected_bias.mul_(shrink).add_(weights @ bias)
    ids, computed = peaks.ids_and_logits()
    missing = _add_missing_weights(expected, hidden, head, ids, computed, sums.maximum.double())
    sums.total += missing.sum(dim=1)
    if head.bias is not None:
        expected_bias += (missing * head.bias[ids].double().nan_to_num(neginf=0.0)).sum(dim=1)
    expected.mul_(head.scale).div_(sums.total[:, None])
    return Walked(sums.log_z(), expected, expected_bias * head.scale / sums.total, ids)


def _shrink_rows(expected: Tensor, shrink: Tensor) -> None:
    """Multiply expected `[N, D]` by shrink `[N]` in float64: a factor that is rounded first would falsify all of e."""
    if expected.device.type != "cpu":
        expected.mul_(shrink[:, None])  # asking which rows change would mean waiting for the device
        return
    changed = (shrink != 1).nonzero()[:, 0]  # a maximum rises a few times in a walk
    expected[changed] = (expected[changed] * shrink[changed, None]).to(expected.dtype)


class _Peaks:
    """Finds the likeliest tokens tile by tile.

    It keeps the largest of all logits, and not the largest of each group of neighbours: vocabularies are often ordered
    by frequency, so the likeliest tokens often share a tile or two, and digits or words of one language are neighbours.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.ids: Tensor | None = None

    def add_tile(self, z: Tensor, start: int, end: int) -> None:
        values, columns = z.topk(min(LIKELIEST, end - start), dim=1)
        ids = columns + start
        if self.values is not None and self.ids is not None:
            values, ids = torch.cat([self.values, values], dim=1), torch.cat([self.ids, ids], dim=1)
            values, order = values.topk(min(LIKELIEST, values.shape[1]), dim=1)
            ids = ids.gather(1, order)
        self.values, self.ids = values, ids

    def ids_and_logits(self) -> tuple[Tensor, Tensor]:
        assert self.values is not None and self.ids is not None, "a vocabulary has entries"
        return self.ids, self.values


class _Named:
    """Collects the computed logits of tokens `ids` `[N, K]` that were chosen before the walk."""

    def __init__(self, ids: Tensor, vocabulary: int) -> None:
        self.ids = ids.long()
        self.values = torch.zeros(self.ids.shape, dtype=torch.float64, device=ids.device)
        # In the order of the vocabulary, so that each tile reads only the entries that lie in it. Where these begin is
        # computed once for all tiles, because every answer means waiting for the device.
        self.sorted, self.places = self.ids.flatten().sort()
        self.rows = self.places // max(1, ids.shape[1])
        edges = [0, *(end for _, end in tile_bounds(len(ids), vocabulary))]
        begins = torch.searchsorted(self.sorted, torch.tensor(edges, device=ids.device)).tolist()
        self.begins = dict(zip(edges, begins, strict=True))

    def add_tile(self, z: Tensor, start: int, end: int) -> None:
        first, last = self.begins[start], self.begins[end]
        if first < last:
            own = z[self.rows[first:last], self.sorted[first:last] - start]
            self.values.view(-1)[self.places[first:last]] = own.double()

    def ids_and_logits(self) -> tuple[Tensor, Tensor]:
        return self.ids, self.values


def _add_missing_weights(
    expected: Tensor, hidden: Tensor, head: Head, ids: Tensor, computed: Tensor, maximum: Tensor
) -> Tensor:
    """What rounding took from the weights exp(z − maximum) of the entries `ids`, float64 `[N, K]`.

    Adds it, times W, to `expected` `[N, D]`, which is still Σ exp(z − maximum)·W.
    """
    missing = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for piece in _pieces(len(ids), ids.shape[1] * hidden.shape[1], hidden.device):
        rows, z = head.weight[ids[piece]].double(), computed[piece].double()
        exact = torch.bmm(rows, hidden[piece, :, None].double())[:, :, 0]
        if head.bias is not None:
            exact += head.bias[ids[piece]].double()
        # Masked entries are −inf both times: they have no mass, so rounding took nothing from them.
        error = torch.where(z == -torch.inf, 0.0, exact * head.scale - z)
        missing[piece] = (z - maximum[piece, None]).exp() * torch.expm1(error)
        expected[piece] += torch.bmm(missing[piece, None], rows)[:, 0]
    return missing


def _pieces(tokens: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Slices of the tokens, so small that `numbers` float64 values per token may be held; none if `numbers` is 0."""
    if not numbers:
        return
    step = max(1, PIECE_ENTRIES.get(device.type, PIECE_ENTRIES_ELSEWHERE) // numbers)
    for start in range(0, tokens, step):
        yield slice(start, start + step)


def own_logits(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """The logit of one entry a token, `[N]` float64, without a matrix product."""
    z = row_dot(hidden, head.weight[targets])
    if head.bias is not None:
        z = z + head.bias[targets].double()
    return z * head.scale


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_d a·b of each row of `[N, D]`, float64 `[N]`."""
    out = torch.empty(len(a), dtype=torch.float64, device=a.device)
    for piece in _pieces(len(a), 2 * a.shape[1], a.device):
        out[piece] = (a[piece].double() * b[piece].double()).sum(dim=1)
    return out


def summarize(hidden: Tensor, head: Head, targets: Tensor) -> ReferenceSummary:
    """`summarize_reference` on arguments that were checked and have no gradient."""
    with torch.autocast(hidden.device.type, enabled=False):
        walked = walk(hidden, head)
    # From the *stored* e, so that its rounding multiplies h − h_ref only.
    offset = row_dot(walked.expected_weight, hidden) - walked.log_z
    reference_logp = (own_logits(hidden, head, targets) - walked.log_z).to(walked.expected_weight.dtype)
    return ReferenceSummary(walked.expected_weight, offset, reference_logp, walked.likeliest.int(), hidden)


def statistics(
    hidden: Tensor,
    head: Head,
    summary: ReferenceSummary,
    targets: Tensor,
    extras: frozenset[Extra],
    learned: LearnedTokens,
) -> TokenStats:
    """`frozen_head_token_stats` on arguments that were checked."""
    with torch.autocast(hidden.device.type, enabled=False):
        logp, kl, reverse_kl, entropy = _FrozenHeadStats.apply(hidden, head, summary, targets, extras, learned)
    return TokenStats(
        logp,
        summary.reference_logp,
        kl,
        reverse_kl if "reverse_kl" in extras else None,
        entropy if "policy_entropy" in extras else None,
    )


def _reverse_kl(hidden: Tensor, walked: Walked, summary: ReferenceSummary) -> Tensor:
    """KL(p‖q) = logZ(h_ref) − logZ(h) + E_p[s·W]·(h − h_ref), the same divergence with the roles exchanged."""
    assert summary.hidden is not None
    log_z_ref = row_dot(summary.expected_weight, summary.hidden) - summary.offset
    step = hidden.double() - summary.hidden.double()
    return log_z_ref - walked.log_z + row_dot(walked.expected_weight, step)


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
    ) -> tuple[Tensor, ...]:
        no_ids = targets.new_empty(len(targets), 0)
        walked = walk(hidden, head, no_ids if summary.likeliest is None else summary.likeliest)
        log_z, expected = walked.log_z, walked.expected_weight
        ctx.head, ctx.learned = head, learned
        ctx.set_materialize_grads(False)  # a reverse KL that is only measured must cost nothing here
        needs_hidden = (hidden, summary.hidden, log_z) if "reverse_kl" in extras else ()
        ctx.save_for_backward(expected, summary.expected_weight, targets, *needs_hidden)
        ctx.hidden_dtype = hidden.dtype
        logp = own_logits(hidden, head, targets) - log_z
        kl = log_z + summary.offset - row_dot(summary.expected_weight, hidden)
        reverse_kl = entropy = torch.zeros_like(log_z)
        if "reverse_kl" in extras:
            reverse_kl = _reverse_kl(hidden, walked, summary)
        if "policy_entropy" in extras:
            entropy = log_z - row_dot(expected, hidden) - walked.expected_bias
        out = [value.to(expected.dtype) for value in (logp, kl, reverse_kl, entropy)]
        ctx.mark_non_differentiable(*(out[3:] if "reverse_kl" in extras else out[2:]))
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, expected_reference, targets, *of_reverse = ctx.saved_tensors
        nothing = torch.zeros_like(expected[:, 0])
        d_logp, d_kl = (nothing if gradient is None else gradient for gradient in upstream[:2])
        own = ctx.head.weight[targets].to(expected.dtype) * ctx.head.scale
        d_hidden = d_logp[:, None] * (own - expected) + d_kl[:, None] * (expected - expected_reference)
        if upstream[2] is not None:
            tokens = tokens_with_gradient(ctx.learned, {"reverse_kl": upstream[2]}, len(expected))
            if tokens := narrowed(tokens, [upstream[2]]):
                rows = slice(tokens.start, tokens.stop)
                hidden, reference_hidden, log_z, p, q, gradient = (
                    each[rows] for each in (*of_reverse, expected, expected_reference, upstream[2])
                )
                d_hidden[rows] += reverse_kl_gradient(hidden, reference_hidden, ctx.head, log_z, p, q, gradient)
        return d_hidden.to(ctx.hidden_dtype), None, None, None, None, None
