"""The Jensen–Shannon divergence on the tiled path: a second walk, once log Z of both models is known.

With w the reference's share, m = w·q + (1 − w)·p and JS = w·KL(q‖m) + (1 − w)·KL(p‖m), the derivative with respect to
one probability is

    ∂ JS/∂p_v = (1 − w)·(log p_v − log m_v + 1) − ((1 − w)/m_v)·(w·q_v + (1 − w)·p_v) = (1 − w)·(log p_v − log m_v),

since the last bracket is m_v itself. Through the softmax,

    ∇ JS = (1 − w)·p·(log p − log m − KL(p‖m)).

The mixture needs both probabilities of an entry at once, and these need log Z; so nothing can be gathered in the first
walk, and the forward pass makes its two products twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def below_mixture(logp: Tensor, logq: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """log p − log m and log q − log m for a tile `[N, T]` of log-probabilities; 0 where p or q itself is 0.

    Both follow from the gap log q − log p alone, so that nothing is lost where the two models are near.
    """
    gap = logq - logp
    near = gap.abs() < 1.0
    small = torch.where(near, gap, 0.0)
    far = torch.logaddexp(gap + math.log(weight), torch.full_like(gap, math.log1p(-weight)))
    mixture_over_p = torch.where(near, torch.log1p(weight * torch.expm1(small)), far)
    p_is_zero, q_is_zero = logp == -torch.inf, logq == -torch.inf
    # Where an entry is masked, the gap is infinite or NaN. m is then the other model's share alone.
    below_q = torch.where(p_is_zero, -math.log(weight), gap - mixture_over_p)
    return (
        mixture_over_p.neg_().masked_fill_(p_is_zero, 0.0),
        below_q.masked_fill_(q_is_zero, 0.0),
    )


class MixtureSums:
    """KL(p‖m) and the divergence of N tokens, gathered tile by tile; float64 `[N]` each."""

    def __init__(self, tokens: int, weight: float, device: torch.device) -> None:
        self.weight = weight
        self.policy_kl = torch.zeros(tokens, dtype=torch.float64, device=device)
        self.divergence = torch.zeros_like(self.policy_kl)

    def add_tile(self, logp: Tensor, logq: Tensor) -> None:
        below_p, below_q = below_mixture(logp, logq, self.weight)
        of_policy = below_p.mul_(logp.exp())
        self.policy_kl += of_policy.sum(dim=1)
        # Each of the two is of first order in the gap, and their sum over one entry of second order.
        of_reference = below_q.mul_(logq.exp())
        self.divergence += of_policy.mul_(1.0 - self.weight).add_(of_reference, alpha=self.weight).sum(dim=1)


def mixture_gradient(logp: Tensor, logq: Tensor, weight: float, policy_kl: Tensor) -> Tensor:
    """∇ JS with respect to a tile of the policy's logits, `[N, T]`; `policy_kl` `[N]` is KL(p‖m)."""
    below_p, _ = below_mixture(logp, logq, weight)
    p = logp.exp()
    return torch.where(p > 0, (1.0 - weight) * p * (below_p - policy_kl[:, None]), 0.0)
