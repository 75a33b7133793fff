"""`linear_token_stats` without [N, V]: both passes walk the vocabulary in tiles.

With logits z and the policy's and reference's distributions p and q, the gradient of every statistic
with respect to z is a combination of p, q and onehot that is known once the forward pass has left
log Z behind (nats, float64 accumulators):

    ∇ log p(y)   = onehot(y) − p
    ∇ KL(q‖p)    = p − q
    ∇ KL(p‖q)    = p·(log p − log q − KL(p‖q))
    ∇ H(p)       = −p·(log p + H(p))

The backward pass recomputes a tile of logits, turns it into its gradient in place and contracts it at
once. It skips the head's gradient when the head is frozen, and the reference's logits for tokens
whose KL has no gradient: under TDPO2 that is every chosen token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from .types import Head

# Wide tiles read each weight once per pass and keep the matrix products efficient; what they hold is
# [N, TILE], so for very long batches the tile narrows until that is about 8 Mi entries. Twice as wide
# was no faster and held twice the memory.
TILE = 1024
TILE_ENTRIES = 1 << 23
MIN_TILE = 512


@contextmanager
def float32_products_in_bf16(enabled: bool) -> Iterator[None]:
    """Let CPU float32 matrix products use bf16 units, exact here because the operands hold bf16 values.

    CPU kernels have no bf16 × bf16 → float32 product; widening the operands and narrowing only
    inside the kernel gives one. The switch is process-wide, hence scoped and restored.
    """
    if not enabled:
        yield
        return
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class Workspace:
    """Memory that the tiles of one walk share: taken anew for each tile, the heap would hold it in pieces, several
    times over, and the system would clear every page again."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of this shape; what was last taken under this name is lost."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=like.device)
        return held[:size].view(*shape)

    def converted(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix `value`, or the transpose of one, in `dtype` (which may be narrower)."""
        if value.dtype == dtype:
            return value
        if value.is_contiguous():
            return self.take(name, value.shape, value, dtype).copy_(value)
        return self.take(name, value.T.shape, value, dtype).copy_(value.T).T


def wide_product(a: Tensor, b: Tensor, work: Workspace | None = None, name: str = "") -> Tensor:
    """a @ b with the result in float32 (float64 for float64), whatever the operands' dtype.

    With `work` the result is its memory of that name.
    """
    if _has_wide_kernel(a, b):
        return torch.mm(a, b, out_dtype=torch.float32)
    work = work or Workspace()
    with _wide_operands(a, b, work) as (left, right):
        return torch.mm(left, right, out=work.take(name, (a.shape[0], b.shape[1]), left, left.dtype))


def add_wide_product(total: Tensor, a: Tensor, b: Tensor, work: Workspace) -> None:
    """total += a @ b for a float32 (float64) `total`, the product as wide as `wide_product` makes it."""
    if _has_wide_kernel(a, b):
        total += torch.mm(a, b, out_dtype=torch.float32)
        return
    with _wide_operands(a, b, work) as (left, right):
        if left.dtype == total.dtype:
            torch.addmm(total, left, right, out=total)
        else:
            total += left @ right


def _has_wide_kernel(a: Tensor, b: Tensor) -> bool:
    return a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16)


@contextmanager
def _wide_operands(a: Tensor, b: Tensor, work: Workspace) -> Iterator[tuple[Tensor, Tensor]]:
    """Both operands in float32 (float64 if one is), and products of them as fast as their own dtypes allow."""
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    exact = a.device.type == "cpu" and a.dtype == b.dtype == torch.bfloat16
    with float32_products_in_bf16(exact):
        yield work.converted("left operand", a, wide), work.converted("right operand", b, wide)


def narrow_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b into `out`, which is no wider than the operands, by the fastest kernel for it."""
    if a.device.type == "cpu" and a.dtype in (torch.bfloat16, torch.float16) and not _cpu_multiplies_bf16():
        out.copy_(wide_product(a, b))
    elif out.dtype != a.dtype:
        out.copy_(a @ b)
    else:
        torch.mm(a, b, out=out)


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 units; without them a bf16 product takes ten times as long as a float32 one."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def tile_bounds(tokens: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """The tiles [start, end) of the vocabulary for a batch of `tokens`."""
    width = max(MIN_TILE, min(TILE, TILE_ENTRIES // max(tokens, 1)))
    for start in range(0, vocabulary, width):
        yield start, min(start + width, vocabulary)


def tile_logits(
    hidden: Tensor, head: Head, start: int, end: int, work: Workspace | None = None, name: str = "logits"
) -> Tensor:
    """Logits `[N, end − start]` of one tile, float32 or float64; in the memory of `work` where it is given."""
    z = wide_product(hidden, head.weight[start:end].T, work, name)
    if head.bias is not None:
        z += head.bias[start:end]
    if head.scale != 1.0:
        z *= head.scale
    if head.softcap is not None:
        z.div_(head.softcap).tanh_().mul_(head.softcap)
    return z


def masks_vocabulary(head: Head) -> bool:
    """Whether a bias of −inf takes entries out of the vocabulary, so that gaps need a guard."""
    return head.bias is not None and not bool(torch.isfinite(head.bias).all())


@dataclass
class Accumulator:
    """Running log-sum-exp of `[N]` rows, and sums weighted by the same exponentials."""

    maximum: Tensor
    total: Tensor

    @classmethod
    def start(cls, tokens: int, like: Tensor) -> Accumulator:
        # The smallest finite number instead of −inf: a tile of −inf only must not give −inf − −inf.
        lowest = torch.finfo(like.dtype).min
        maximum = like.new_full((tokens,), lowest)
        return cls(maximum, torch.zeros(tokens, dtype=torch.float64, device=like.device))

    def raise_maximum(self, z: Tensor) -> Tensor:
        """Take the tile's maximum in; returns the factor `[N]` by which older sums shrink."""
        higher = torch.maximum(self.maximum, z.amax(dim=1))
        shrink = (self.maximum.double() - higher.double()).exp()
        self.maximum = higher
        self.total *= shrink
        return shrink

    def exponentials(self, z: Tensor) -> Tensor:
        """exp(z − maximum), in place of z, added to the total."""
        z.sub_(self.maximum[:, None]).exp_()
        self.total += z.sum(dim=1)
        return z

    def log_z(self) -> Tensor:
        return self.maximum.double() + self.total.log()


def weighted_row_sum(weight: Tensor, value: Tensor) -> Tensor:
    """Σ_v weight·value per row, overwriting `value`; float64 `[N]`."""
    return value.mul_(weight).sum(dim=1).double()


@dataclass(frozen=True)
class _Plan:
    """Everything about the call that is not a tensor needing a gradient."""

    policy_head: Head
    reference_head: Head
    extras: frozenset[str]
    guarded: bool


def token_statistics(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[str],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """policy_logp, reference_logp, forward_kl, reverse_kl, policy_entropy, each `[N]` or None."""
    guarded = masks_vocabulary(policy_head) or masks_vocabulary(reference_head)
    plan = _Plan(policy_head, reference_head, extras, guarded)
    with torch.autocast(policy_hidden.device.type, enabled=False):
        outputs = _TiledTokenStats.apply(
            policy_hidden, policy_head.weight, policy_head.bias, reference_hidden.detach(), targets, plan
        )
    policy_logp, reference_logp, forward_kl, reverse_kl, entropy = outputs
    return (
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
        out = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(
            hidden, weight, bias, reference_hidden, targets, sums.policy_log_z, sums.reference_log_z,
            sums.reverse_kl, sums.entropy,
        )  # fmt: skip
        ctx.plan = plan
        reference_logp = sums.reference_logp.to(out)
        ctx.mark_non_differentiable(reference_logp)
        return (
            sums.policy_logp.to(out),
            reference_logp,
            sums.forward_kl.to(out),
            sums.reverse_kl.to(out),
            sums.entropy.to(out),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Weight and bias are saved only for autograd's check that nothing changed them in place since.
        hidden, _weight, _bias, reference_hidden, targets, *saved = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        d_logp, _, d_forward, d_reverse, d_entropy = upstream
        walk = _BackwardWalk(
            hidden, reference_hidden, targets, ctx.plan, saved, (d_logp, d_forward, d_reverse, d_entropy)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            grads = walk.run(needs_hidden, needs_weight, needs_bias)
        return (*grads, None, None, None)


@dataclass
class _ForwardSums:
    policy_log_z: Tensor
    reference_log_z: Tensor
    policy_logp: Tensor
    reference_logp: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    entropy: Tensor


def _walk_forward(hidden: Tensor, reference_hidden: Tensor, targets: Tensor, plan: _Plan) -> _ForwardSums:
    tokens = hidden.shape[0]
    wide = hidden.new_empty(0, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    policy, reference = Accumulator.start(tokens, wide), Accumulator.start(tokens, wide)
    zeros = torch.zeros(tokens, dtype=torch.float64, device=hidden.device)
    gap_q, gap_p, mean_z = zeros.clone(), zeros.clone(), zeros.clone()  # Σ q̃(z_ref−z), Σ p̃(z_ref−z), Σ p̃z
    target_z, target_z_ref = zeros.clone(), zeros.clone()
    policy_lacks, reference_lacks = zeros.bool(), zeros.bool()  # support that only the other model has

    work = Workspace()
    for start, end in tile_bounds(tokens, plan.policy_head.weight.shape[0]):
        z = tile_logits(hidden, plan.policy_head, start, end, work)
        z_ref = tile_logits(reference_hidden, plan.reference_head, start, end, work, "reference logits")
        _pick_targets(target_z, z, targets, start, end)
        _pick_targets(target_z_ref, z_ref, targets, start, end)
        gap = torch.sub(z_ref, z, out=work.take("gap", z.shape, z, z.dtype))
        if plan.guarded:
            masked, masked_ref = z == -torch.inf, z_ref == -torch.inf
            policy_lacks |= (masked & ~masked_ref).any(dim=1)
            reference_lacks |= (masked_ref & ~masked).any(dim=1)
            gap.masked_fill_(masked | masked_ref, 0.0)
        shrink_p, shrink_q = policy.raise_maximum(z), reference.raise_maximum(z_ref)
        if "policy_entropy" in plan.extras:
            z_value = torch.where(z == -torch.inf, 0.0, z) if plan.guarded else z.clone()
        p, q = policy.exponentials(z), reference.exponentials(z_ref)
        if "policy_entropy" in plan.extras:
            mean_z = mean_z * shrink_p + weighted_row_sum(p, z_value)
        if "reverse_kl" in plan.extras:
            gap_p = gap_p * shrink_p + weighted_row_sum(gap, p)
        gap_q = gap_q * shrink_q + weighted_row_sum(q, gap)

    log_z, log_z_ref = policy.log_z(), reference.log_z()
    forward_kl = gap_q / reference.total + (log_z - log_z_ref)
    reverse_kl = -gap_p / policy.total - (log_z - log_z_ref) if "reverse_kl" in plan.extras else zeros
    return _ForwardSums(
        policy_log_z=log_z,
        reference_log_z=log_z_ref,
        policy_logp=target_z - log_z,
        reference_logp=target_z_ref - log_z_ref,
        forward_kl=forward_kl.masked_fill_(policy_lacks, torch.inf),
        reverse_kl=reverse_kl.masked_fill(reference_lacks, torch.inf),
        entropy=log_z - mean_z / policy.total if "policy_entropy" in plan.extras else zeros,
    )


def own_entry(ids: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Whether each of `ids` lies in the tile, and its column there (any one if not); both of the shape of `ids`."""
    return (ids >= start) & (ids < end), (ids - start).clamp(0, end - start - 1)


def _pick_targets(into: Tensor, z: Tensor, targets: Tensor, start: int, end: int) -> None:
    """Copy each token's own logit from the tile that contains it."""
    inside, column = own_entry(targets, start, end)
    into.copy_(torch.where(inside, z.gather(1, column[:, None])[:, 0].double(), into))


class _BackwardWalk:
    """The backward pass: recompute each tile, make it dz in place, contract it."""

    def __init__(
        self,
        hidden: Tensor,
        reference_hidden: Tensor,
        targets: Tensor,
        plan: _Plan,
        saved: list[Tensor],
        upstream: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        self.plan = plan
        self.work = Workspace()
        self.wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_logp, d_forward, d_reverse, d_entropy = (g.to(self.wide) for g in upstream)
        # Tokens that need the reference again come first, so that they are one contiguous block.
        needs_reference = (d_forward != 0) | (d_reverse != 0)
        self.order = order = torch.argsort(needs_reference.int(), descending=True, stable=True)
        self.with_reference = int(needs_reference.sum())
        self.hidden = hidden[order]
        self.reference_hidden = reference_hidden[order[: self.with_reference]]
        self.targets = targets[order]
        self.log_z, self.log_z_ref, self.reverse, self.entropy = (s[order] for s in saved)
        self.d_logp, self.d_forward = d_logp[order], d_forward[order]
        self.d_reverse, self.d_entropy = d_reverse[order], d_entropy[order]
        self.any_reverse = "reverse_kl" in plan.extras and bool((d_reverse != 0).any())
        self.any_entropy = "policy_entropy" in plan.extras and bool((d_entropy != 0).any())

    def run(
        self, needs_hidden: bool, needs_weight: bool, needs_bias: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        head = self.plan.policy_head
        d_hidden = torch.zeros_like(self.hidden, dtype=self.wide) if needs_hidden else None
        d_weight = torch.empty_like(head.weight) if needs_weight else None
        d_bias = torch.empty_like(head.bias) if needs_bias and head.bias is not None else None
        # Half-precision operands only where both are: a float32 hidden state is owed a float32 gradient.
        operand_dtype = torch.promote_types(self.hidden.dtype, head.weight.dtype)
        hidden = self.hidden.to(operand_dtype)
        for start, end in tile_bounds(self.hidden.shape[0], head.weight.shape[0]):
            dz = self.tile_gradient(start, end)
            if d_bias is not None:
                d_bias[start:end] = dz.sum(dim=0)
            operand = self.work.converted("operand", dz, operand_dtype)
            if d_hidden is not None:
                add_wide_product(d_hidden, operand, head.weight[start:end], self.work)
            if d_weight is not None:
                narrow_product(operand.T, hidden, out=d_weight[start:end])
        if d_hidden is not None:
            restored = torch.empty_like(d_hidden)
            restored[self.order] = d_hidden
            d_hidden = restored.to(self.hidden.dtype)
        return d_hidden, d_weight, d_bias

    def tile_gradient(self, start: int, end: int) -> Tensor:
        """d loss / d(h·weightᵀ + bias) for one tile, `[N, end − start]`."""
        head, k = self.plan.policy_head, self.with_reference
        z = tile_logits(self.hidden, head, start, end, self.work)
        chain = None
        if head.softcap is not None:
            chain = (z / head.softcap).square_().neg_().add_(1.0)
        logp = z.sub_(self.log_z.to(self.wide)[:, None])
        extra = self._extra_gradient(logp, start, end) if self.any_reverse or self.any_entropy else None
        dz = logp.exp_().mul_((self.d_forward - self.d_logp)[:, None])
        if k:
            logq = self._reference_logp(start, end)
            dz[:k].sub_(logq.exp_().mul_(self.d_forward[:k, None]))
        if extra is not None:
            dz += extra
        self._add_targets(dz, start, end)
        if chain is not None:
            dz *= chain
        return dz.mul_(head.scale) if head.scale != 1.0 else dz

    def _reference_logp(self, start: int, end: int) -> Tensor:
        z_ref = tile_logits(self.reference_hidden, self.plan.reference_head, start, end, self.work, "reference logits")
        return z_ref.sub_(self.log_z_ref[: self.with_reference].to(self.wide)[:, None])

    def _extra_gradient(self, logp: Tensor, start: int, end: int) -> Tensor:
        """p·(d_reverse·(log p − log q − KL) − d_entropy·(log p + H)); rare, so clarity before speed."""
        k = self.with_reference
        p = logp.exp()
        safe_logp = torch.where(p > 0, logp, 0.0)
        out = -self.d_entropy[:, None] * (safe_logp + self.entropy.to(self.wide)[:, None])
        if self.any_reverse:
            gap = safe_logp[:k] - self._reference_logp(start, end)
            out[:k] += self.d_reverse[:k, None] * (gap - self.reverse[:k].to(self.wide)[:, None])
        return torch.where(p > 0, out.mul_(p), 0.0)

    def _add_targets(self, dz: Tensor, start: int, end: int) -> None:
        inside, column = own_entry(self.targets, start, end)
        dz.scatter_add_(1, column[:, None], torch.where(inside, self.d_logp, 0.0)[:, None].to(dz.dtype))
