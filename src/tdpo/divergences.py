"""Exact divergences between two next-token distributions, from logits, and their sampled estimators.

Everything is in nats and in log space. Direction is always in the name: `forward_kl` is
KL(reference‖policy), the one TDPO adds to DPO (arXiv 2404.11999, eq. 8); `reverse_kl` is
KL(policy‖reference), the one PPO penalises.

Shapes: `*B` stands for any leading dimensions, `V` for the vocabulary (the legend is in `token_statistics`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Estimator = Literal["k1", "k2", "k3"]


def log_softmax(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B V"]:
    """Log-probabilities over the last dimension, in float32 (float64 in → float64 out).

    Half-precision logits are widened before the exponential. A row of nothing but −inf is no distribution
    and gives NaN.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, dim=-1)


def weighted_log_gap(
    weight_logp: Float[Tensor, "*B V"], logp: Float[Tensor, "*B V"], other_logp: Float[Tensor, "*B V"]
) -> Float[Tensor, "*B"]:
    """Σ_v exp(weight_logp)·(logp − other_logp) over the last dimension; exactly zero where weight_logp is −inf.

    A masked vocabulary has −inf in both arguments, and their difference is NaN. Those entries are
    replaced *before* the subtraction, so that neither the value nor the gradient sees them.
    """
    weight, gap, _ = _weight_and_gap(weight_logp, logp, other_logp)
    return (weight * gap).sum(dim=-1)


def _weight_and_gap(weight_logp: Tensor, logp: Tensor, other_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(weight_logp), logp − other_logp, and which entries are supported (weight_logp > −inf).

    Entries that are not supported get finite stand-ins in the first two.
    """
    supported = weight_logp > -torch.inf
    gap = torch.where(supported, logp, 0.0) - torch.where(supported, other_logp, 0.0)
    # A weight that underflows is small, not zero: against a gap of +inf, 0·inf would be NaN.
    weight = torch.where(supported, weight_logp, 0.0).exp().clamp_min(torch.finfo(logp.dtype).tiny)
    return weight, gap, supported


def kl_of_logp(logp: Float[Tensor, "*B V"], other_logp: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """KL(p‖other) of normalised log-probabilities `[..., V]`: `[...]` nats, +inf where the other lacks support.

    It is computed as Σ_v p·gap − p + other with gap = log p − log other, which is the same where both sum to one. Here
    every term is of second order in the gap and none is negative, so that rounding in the logits and in log Z cancels.
    In the plain sum it stays, at first order.
    """
    p, gap, supported = _weight_and_gap(logp, logp, other_logp)
    near = gap.abs() < 1.0
    small = torch.where(near, gap, 0.0)
    other = other_logp.exp()
    terms = torch.where(near, p * (small + torch.expm1(-small)), p * gap - p + other)
    return torch.where(supported, terms, other).sum(dim=-1)


def _same_shape(policy_logits: Tensor, reference_logits: Tensor) -> None:
    if policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"policy_logits and reference_logits must have one shape [..., V], got "
            f"{tuple(policy_logits.shape)} and {tuple(reference_logits.shape)}. "
            "Do the two models share a vocabulary?"
        )


def forward_kl(policy_logits: Float[Tensor, "*B V"], reference_logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """KL(reference‖policy) = Σ_v π_ref(v)·(log π_ref(v) − log π(v)), the term of TDPO (eq. 8).

    Args:
        policy_logits: `[..., V]`, any floating dtype.
        reference_logits: `[..., V]`.

    Returns:
        `[...]` nats per position, ≥ 0 up to rounding; +inf where the reference has support that the
        policy lacks; 0 from entries where the reference has probability zero.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(policy_logits, reference_logits)
    reference = log_softmax(reference_logits)
    return kl_of_logp(reference, log_softmax(policy_logits))


def reverse_kl(policy_logits: Float[Tensor, "*B V"], reference_logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """KL(policy‖reference) = Σ_v π(v)·(log π(v) − log π_ref(v)), the constraint of PPO.

    Shapes, units, infinities and errors as `forward_kl`, with the roles exchanged.
    """
    _same_shape(policy_logits, reference_logits)
    policy = log_softmax(policy_logits)
    return kl_of_logp(policy, log_softmax(reference_logits))


def jensen_shannon(
    policy_logits: Float[Tensor, "*B V"], reference_logits: Float[Tensor, "*B V"], weight: float = 0.5
) -> Float[Tensor, "*B"]:
    """Generalised Jensen–Shannon divergence: w·KL(reference‖m) + (1 − w)·KL(policy‖m), m = w·π_ref + (1 − w)·π.

    (Lin 1991, eq. 4.1; Agarwal et al. 2023, arXiv 2306.13649, whose β is w.) With `weight` 0.5 it is symmetric and at
    most log 2 nats. As w → 0, it becomes w·KL(reference‖policy); as w → 1, (1 − w)·KL(policy‖reference).

    Args:
        policy_logits: `[..., V]`.
        reference_logits: `[..., V]`.
        weight: the reference's share w of the mixture, strictly between 0 and 1.

    Returns:
        `[...]` nats per position, always finite.

    Raises:
        ValueError: the shapes differ or `weight` is not inside (0, 1).
    """
    _same_shape(policy_logits, reference_logits)
    if not 0.0 < weight < 1.0:
        raise ValueError(f"weight must lie strictly between 0 and 1, got {weight}")
    return jensen_shannon_of_logp(log_softmax(policy_logits), log_softmax(reference_logits), weight)


def jensen_shannon_of_logp(
    policy: Float[Tensor, "*B V"], reference: Float[Tensor, "*B V"], weight: float
) -> Float[Tensor, "*B"]:
    """`jensen_shannon` of normalised log-probabilities `[..., V]`: `[...]` nats."""
    # logaddexp(−inf, −inf) has a NaN gradient; entries that neither model supports get a finite stand-in.
    nowhere = (policy == -torch.inf) & (reference == -torch.inf)
    mixture = torch.logaddexp(
        torch.where(nowhere, 0.0, reference) + math.log(weight),
        torch.where(nowhere, 0.0, policy) + math.log1p(-weight),
    )
    return weight * weighted_log_gap(reference, reference, mixture) + (1.0 - weight) * weighted_log_gap(
        policy, policy, mixture
    )


def entropy(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """Shannon entropy −Σ_v π(v)·log π(v) of `[..., V]` logits: `[...]` nats per position."""
    logp = log_softmax(logits)
    return -weighted_log_gap(logp, logp, torch.zeros_like(logp))


def sampled_kl(
    policy_logp: Float[Tensor, "*B"], reference_logp: Float[Tensor, "*B"], estimator: Estimator
) -> Float[Tensor, "*B"]:
    """Estimate KL(policy‖reference) from log-probabilities of tokens *drawn from the policy*.

    With r = π_ref/π at the drawn token (Schulman 2020, "Approximating KL divergence"):
    k1 = −log r, unbiased, may be negative; k2 = ½(log r)², biased, never negative;
    k3 = r − 1 − log r, unbiased and never negative.

    As losses they differ: averaged over on-policy tokens, ∇k1 is zero and ∇k3 is the gradient
    of the *forward* KL; only ∇k2 is that of the KL it estimates. See `docs/the_two_kls.md`.

    Args:
        policy_logp: `[...]` log-probability of each drawn token under the policy.
        reference_logp: `[...]` the same under the reference.
        estimator: "k1", "k2" or "k3".

    Returns:
        `[...]` nats per token, float32 (float64 in → float64 out).

    Raises:
        ValueError: the shapes differ or the estimator is unknown.
    """
    if policy_logp.shape != reference_logp.shape:
        raise ValueError(
            f"policy_logp and reference_logp must have one shape, got {tuple(policy_logp.shape)} and "
            f"{tuple(reference_logp.shape)}"
        )
    if policy_logp.dtype != torch.float64:
        policy_logp, reference_logp = policy_logp.float(), reference_logp.float()
    log_r = reference_logp - policy_logp
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return 0.5 * log_r.square()
    if estimator == "k3":
        return torch.expm1(log_r) - log_r
    raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
