"""The tiled path's forward pass: one walk over the vocabulary that leaves log Z and every statistic behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .products import Workspace
from .tiled_mixture import MixtureSums
from .tiles import Accumulator, masks_vocabulary, own_entry, tile_bounds, tile_logits, weighted_row_sum
from .types import Extra, Head, LearnedTokens, mixture_of


@dataclass(frozen=True)
class Plan:
    """Everything about one call that is not a tensor needing a gradient.

    `guarded`: some entry of the vocabulary may be masked by −inf. `learned`: the tokens whose KLs are learned from.
    """

    policy_head: Head
    reference_head: Head
    extras: frozenset[Extra]
    guarded: bool
    learned: LearnedTokens

    @classmethod
    def of(cls, policy_head: Head, reference_head: Head, extras: frozenset[Extra], learned: LearnedTokens) -> Plan:
        guarded = masks_vocabulary(policy_head) or masks_vocabulary(reference_head)
        return cls(policy_head, reference_head, extras, guarded, learned)


@dataclass
class ForwardSums:
    """What the forward pass computes, float64 `[N]` each; statistics that are no extra of the plan are 0."""

    policy_log_z: Tensor
    reference_log_z: Tensor
    policy_logp: Tensor
    reference_logp: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    jensen_shannon: Tensor
    policy_to_mixture: Tensor  # KL(p‖m) of the Jensen–Shannon divergence, which its gradient needs


class ForwardWalk:
    """The sums of a walk; `run` goes over all tiles."""

    def __init__(self, hidden: Tensor, reference_hidden: Tensor, targets: Tensor, plan: Plan) -> None:
        self.hidden, self.reference_hidden, self.targets, self.plan = hidden, reference_hidden, targets, plan
        self.work = Workspace()
        tokens = hidden.shape[0]
        wide = hidden.new_empty(0, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        self.policy, self.reference = Accumulator.start(tokens, wide), Accumulator.start(tokens, wide)
        zeros = torch.zeros(tokens, dtype=torch.float64, device=hidden.device)
        self.zeros = zeros
        self.gap_q, self.gap_p = zeros.clone(), zeros.clone()  # Σ q̃(z_ref − z), Σ p̃(z_ref − z)
        self.mean_z = zeros.clone()  # Σ p̃z
        self.target_z, self.target_z_ref = zeros.clone(), zeros.clone()
        # Whether one model lacks support that the other has.
        self.policy_lacks, self.reference_lacks = zeros.bool(), zeros.bool()

    def run(self) -> ForwardSums:
        for start, end in tile_bounds(self.hidden.shape[0], self.plan.policy_head.weight.shape[0]):
            self._add_tile(start, end)
        sums = self._sums()
        mixture = mixture_of(self.plan.extras)
        return sums if mixture is None else self._with_mixture(sums, mixture.weight)

    def _with_mixture(self, sums: ForwardSums, weight: float) -> ForwardSums:
        """A second walk, which needs log Z of both models."""
        gathered = MixtureSums(len(self.hidden), weight, self.hidden.device)
        for start, end in tile_bounds(self.hidden.shape[0], self.plan.policy_head.weight.shape[0]):
            z = tile_logits(self.hidden, self.plan.policy_head, start, end, self.work)
            z_ref = tile_logits(
                self.reference_hidden, self.plan.reference_head, start, end, self.work, "reference logits"
            )
            logp = z.sub_(sums.policy_log_z.to(z.dtype)[:, None])
            gathered.add_tile(logp, z_ref.sub_(sums.reference_log_z.to(z_ref.dtype)[:, None]))
        return replace(sums, jensen_shannon=gathered.divergence, policy_to_mixture=gathered.policy_kl)

    def _add_tile(self, start: int, end: int) -> None:
        plan, work = self.plan, self.work
        z = tile_logits(self.hidden, plan.policy_head, start, end, work)
        z_ref = tile_logits(self.reference_hidden, plan.reference_head, start, end, work, "reference logits")
        _pick_targets(self.target_z, z, self.targets, start, end)
        _pick_targets(self.target_z_ref, z_ref, self.targets, start, end)
        gap = self._gap(z, z_ref)
        shrink_p, shrink_q = self.policy.raise_maximum(z), self.reference.raise_maximum(z_ref)
        if "policy_entropy" in plan.extras:
            z_value = torch.where(z == -torch.inf, 0.0, z) if plan.guarded else z.clone()
        p, q = self.policy.exponentials(z), self.reference.exponentials(z_ref)
        if "policy_entropy" in plan.extras:
            self.mean_z = self.mean_z * shrink_p + weighted_row_sum(p, z_value)
        if "reverse_kl" in plan.extras:
            self.gap_p = self.gap_p * shrink_p + weighted_row_sum(gap, p)
        self.gap_q = self.gap_q * shrink_q + weighted_row_sum(q, gap)

    def _gap(self, z: Tensor, z_ref: Tensor) -> Tensor:
        """z_ref − z, and 0 where an entry is masked, which is noted if it is masked in one model only."""
        gap = torch.sub(z_ref, z, out=self.work.take("gap", z.shape, z, z.dtype))
        if self.plan.guarded:
            masked, masked_ref = z == -torch.inf, z_ref == -torch.inf
            self.policy_lacks |= (masked & ~masked_ref).any(dim=1)
            self.reference_lacks |= (masked_ref & ~masked).any(dim=1)
            gap.masked_fill_(masked | masked_ref, 0.0)
        return gap

    def _sums(self) -> ForwardSums:
        extras, zeros = self.plan.extras, self.zeros
        log_z, log_z_ref = self.policy.log_z(), self.reference.log_z()
        forward_kl = self.gap_q / self.reference.total + (log_z - log_z_ref)
        reverse_kl = -self.gap_p / self.policy.total - (log_z - log_z_ref) if "reverse_kl" in extras else zeros
        return ForwardSums(
            policy_log_z=log_z,
            reference_log_z=log_z_ref,
            policy_logp=self.target_z - log_z,
            reference_logp=self.target_z_ref - log_z_ref,
            forward_kl=forward_kl.masked_fill_(self.policy_lacks, torch.inf),
            reverse_kl=reverse_kl.masked_fill(self.reference_lacks, torch.inf),
            entropy=log_z - self.mean_z / self.policy.total if "policy_entropy" in extras else zeros,
            jensen_shannon=zeros,
            policy_to_mixture=zeros,
        )


def _pick_targets(into: Tensor, z: Tensor, targets: Tensor, start: int, end: int) -> None:
    """Copy each token's own logit from the tile that contains it."""
    inside, column = own_entry(targets, start, end)
    into.copy_(torch.where(inside, z.gather(1, column[:, None])[:, 0].double(), into))
