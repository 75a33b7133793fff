"""The tiled path's backward pass: it recomputes each tile and contracts its gradient at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .learned_tokens import KLS, narrowed, tokens_with_gradient
from .products import Workspace, add_wide_product, narrow_product
from .tiled_forward import Plan
from .tiled_mixture import mixture_gradient
from .tiles import own_entry, tile_bounds, tile_logits
from .types import mixture_of


class BackwardWalk:
    """The backward pass: recompute each tile of logits, turn it into its gradient dz in place, contract it.

    `saved` are log Z of both models, the reverse KL, the entropy and KL(p‖m), `upstream` the gradients of policy_logp,
    forward_kl, reverse_kl, policy_entropy and jensen_shannon, `[N]` each or None.
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
        self.plan = plan
        self.work = Workspace()
        self.wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        of_kls = dict(zip(KLS, (upstream[1], upstream[2], upstream[4]), strict=True))
        found = tokens_with_gradient(plan.learned, of_kls, len(hidden))
        found = narrowed(found, list(of_kls.values()))
        self.with_reference = slice(found.start, found.stop)  # the tokens whose reference is needed again
        self.hidden, self.targets = hidden, targets
        self.reference_hidden = reference_hidden[self.with_reference]
        self.log_z, self.log_z_ref, self.reverse, self.entropy, self.policy_to_mixture = saved
        nothing = torch.zeros_like(self.log_z, dtype=self.wide)
        self.d_logp, self.d_forward, self.d_reverse, self.d_entropy, self.d_mixture = (
            nothing if gradient is None else gradient.to(self.wide) for gradient in upstream
        )
        self.any_reverse = "reverse_kl" in plan.extras and upstream[2] is not None and len(found) > 0
        self.any_entropy = "policy_entropy" in plan.extras and upstream[3] is not None
        mixture = mixture_of(plan.extras)
        is_learned = mixture is not None and upstream[4] is not None and len(found) > 0
        self.weight = mixture.weight if mixture is not None and is_learned else None

    def run(
        self, needs_hidden: bool, needs_weight: bool, needs_bias: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the hidden states, the head's weight and its bias; None for those that are not needed."""
        head = self.plan.policy_head
        d_hidden = torch.zeros_like(self.hidden, dtype=self.wide) if needs_hidden else None
        d_weight = torch.empty_like(head.weight) if needs_weight else None
        d_bias = torch.empty_like(head.bias) if needs_bias and head.bias is not None else None
        # Half-precision operands only where both are half precision: a float32 hidden state needs a float32 gradient.
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
            d_hidden = d_hidden.to(self.hidden.dtype)
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
        mixed = None if self.weight is None else self._mixture_gradient(logp, self.weight, start, end)
        dz = logp.exp_().mul_((self.d_forward - self.d_logp)[:, None])
        if len(self.reference_hidden):
            logq = self._reference_logp(start, end)
            dz[k].sub_(logq.exp_().mul_(self.d_forward[k, None]))
        if extra is not None:
            dz += extra
        if mixed is not None:
            dz[k] += mixed
        self._add_targets(dz, start, end)
        if chain is not None:
            dz *= chain
        return dz.mul_(head.scale) if head.scale != 1.0 else dz

    def _reference_logp(self, start: int, end: int) -> Tensor:
        z_ref = tile_logits(self.reference_hidden, self.plan.reference_head, start, end, self.work, "reference logits")
        return z_ref.sub_(self.log_z_ref[self.with_reference].to(self.wide)[:, None])

    def _extra_gradient(self, logp: Tensor, start: int, end: int) -> Tensor:
        """p·(d_reverse·(log p − log q − KL) − d_entropy·(log p + H)); rarely needed, so clarity goes before speed."""
        k = self.with_reference
        p = logp.exp()
        safe_logp = torch.where(p > 0, logp, 0.0)
        out = -self.d_entropy[:, None] * (safe_logp + self.entropy.to(self.wide)[:, None])
        if self.any_reverse:
            d_reverse = self.d_reverse[k, None]
            gap = safe_logp[k] - self._reference_logp(start, end) - self.reverse[k].to(self.wide)[:, None]
            # An infinite KL that nothing is learned from would be 0·inf.
            out[k] += torch.where(d_reverse != 0, d_reverse * gap, 0.0)
        return torch.where(p > 0, out.mul_(p), 0.0)

    def _mixture_gradient(self, logp: Tensor, weight: float, start: int, end: int) -> Tensor:
        """d_mixture·∇JS of the tokens that need the reference."""
        k = self.with_reference
        logq = self._reference_logp(start, end)
        gradient = mixture_gradient(logp[k], logq, weight, self.policy_to_mixture[k].to(self.wide))
        return gradient.mul_(self.d_mixture[k, None])

    def _add_targets(self, dz: Tensor, start: int, end: int) -> None:
        """Add d_logp at each token's own entry, if that lies in the tile."""
        inside, column = own_entry(self.targets, start, end)
        dz.scatter_add_(1, column[:, None], torch.where(inside, self.d_logp, 0.0)[:, None].to(dz.dtype))
