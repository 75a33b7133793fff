"""What both models say about each response token: the statistics that every loss here is made of.

Three ways to the same numbers:

* `token_stats`: logits in, dense, differentiable; the definition, and the oracle of the other two;
* `linear_token_stats`: hidden states and head weights in; nothing of size [N, V] is held;
* `summarize_reference` + `frozen_head_token_stats`: when both models share one frozen head, the
  reference shrinks to about D numbers a token and never has to run again.

Shapes: N flat response tokens (no padding, no prompt), V vocabulary, D hidden size. Units: nats per token.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import torch
from torch import Tensor

from ..divergences import kl_of_logp, log_softmax, weighted_log_gap
from . import cuda, frozen, tiled
from .types import Extra, Head, Impl, ReferenceSummary, TokenStats


def token_stats(
    policy_logits: Tensor,
    reference_logits: Tensor,
    targets: Tensor,
    *,
    extras: Collection[Extra] = (),
) -> TokenStats:
    """Statistics from logits: the definition, dense.

    Args:
        policy_logits: `[N, V]`, any floating dtype; gradients flow to it.
        reference_logits: `[N, V]`; detached, no gradient ever reaches it.
        targets: `[N]` int64, the token that stands at each position.
        extras: any of "reverse_kl", "policy_entropy".

    Returns:
        TokenStats `[N]`. Where the reference has support that the policy lacks, `forward_kl` is +inf.

    Raises:
        ValueError: shapes differ, a target lies outside the vocabulary, an extra is unknown.
    """
    if policy_logits.dim() != 2 or policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"policy_logits and reference_logits must both be [N, V], got {tuple(policy_logits.shape)} and "
            f"{tuple(reference_logits.shape)}. Do the two models share a vocabulary?"
        )
    tokens, vocabulary = policy_logits.shape
    _check(targets, tokens, vocabulary, extras)
    policy = log_softmax(policy_logits)
    reference = log_softmax(reference_logits.detach())
    index = targets[:, None]
    return TokenStats(
        policy_logp=policy.gather(1, index)[:, 0],
        reference_logp=reference.gather(1, index)[:, 0],
        forward_kl=kl_of_logp(reference, policy),
        reverse_kl=kl_of_logp(policy, reference) if "reverse_kl" in extras else None,
        policy_entropy=-weighted_log_gap(policy, policy, torch.zeros_like(policy))
        if "policy_entropy" in extras
        else None,
    )


def linear_token_stats(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    *,
    extras: Collection[Extra] = (),
    impl: Impl = "auto",
) -> TokenStats:
    """Statistics from hidden states and head weights, without holding `[N, V]`.

    Args:
        policy_hidden: `[N, D]`; gradients flow to it and, where they require one, to the policy head's
            weight and bias.
        policy_head: `[V, D]` head of the policy.
        reference_hidden: `[N, D_ref]`; D_ref may differ from D. No gradient ever reaches it.
        reference_head: `[V, D_ref]` head of the reference.
        targets: `[N]` int64.
        extras: any of "reverse_kl", "policy_entropy"; both with exact gradients.
        impl: "tiled" walks the vocabulary in tiles and recomputes them in the backward pass; "dense"
            builds the logits in float64 and serves as oracle; "auto" is "tiled".

    Returns:
        TokenStats `[N]`; logits are float32 also when the operands are half precision, because logits
        rounded to bf16 put errors of up to 90 % into small KLs.

    Raises:
        ValueError: shapes that do not fit, vocabularies of different size, a target outside the
            vocabulary, an unknown extra or impl.
    """
    _check_linear("policy_hidden", policy_hidden, policy_head)
    _check_linear("reference_hidden", reference_hidden, reference_head)
    if policy_head.weight.shape[0] != reference_head.weight.shape[0]:
        raise ValueError(
            f"the policy's head has {policy_head.weight.shape[0]} vocabulary entries and the reference's "
            f"{reference_head.weight.shape[0]}: a KL over the vocabulary needs one tokenizer for both"
        )
    if reference_hidden.shape[0] != policy_hidden.shape[0]:
        raise ValueError(
            f"policy_hidden holds {policy_hidden.shape[0]} tokens, reference_hidden {reference_hidden.shape[0]}"
        )
    _check(targets, policy_hidden.shape[0], policy_head.weight.shape[0], extras)
    if impl == "dense":
        return _dense_token_stats(policy_hidden, policy_head, reference_hidden, reference_head, targets, extras)
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    arguments = policy_hidden, policy_head, reference_hidden, reference_head, targets, frozenset(extras)
    if _on_kernels(policy_hidden, policy_head) and _on_kernels(reference_hidden, reference_head):
        return cuda.linear_statistics(*arguments)
    return TokenStats(*tiled.token_statistics(*arguments))


def _on_kernels(hidden: Tensor, head: Head) -> bool:
    return cuda.kernels_apply(hidden, head.weight, head.bias)


def _dense_token_stats(
    policy_hidden: Tensor,
    policy_head: Head,
    reference_hidden: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: Collection[Extra],
) -> TokenStats:
    """`linear_token_stats` on full logits, in float64 throughout where the device has it: an oracle must not round."""
    result = torch.float64 if policy_hidden.dtype == torch.float64 else torch.float32
    wide = torch.float32 if policy_hidden.device.type == "mps" else torch.float64
    with torch.no_grad():
        reference_logits = reference_head.logits(reference_hidden.to(wide))
    stats = token_stats(policy_head.logits(policy_hidden.to(wide)), reference_logits, targets, extras=extras)
    return TokenStats(**{name: value.to(result) for name, value in vars(stats).items() if value is not None})


def summarize_reference(reference_hidden: Tensor, head: Head, targets: Tensor) -> ReferenceSummary:
    """Summarise the reference at N tokens for use with `frozen_head_token_stats`; no gradient.

    Args:
        reference_hidden: `[N, D]`.
        head: the one head that policy and reference share; without softcap.
        targets: `[N]` int64.

    Raises:
        ValueError: a softcap (log Z is then no longer a function of W·h alone), or shapes that do not fit.
    """
    _check_frozen("reference_hidden", reference_hidden, head, targets)
    with torch.no_grad():
        hidden = reference_hidden.detach()
        if _on_kernels(hidden, head):
            return cuda.summarize(hidden, head, targets)
        return ReferenceSummary(*frozen.summarize(hidden, head, targets), hidden)


def frozen_head_token_stats(
    policy_hidden: Tensor,
    head: Head,
    summary: ReferenceSummary,
    targets: Tensor,
    *,
    extras: Collection[Extra] = (),
) -> TokenStats:
    """Statistics when policy and reference share one frozen head: exact, with no reference logits.

    The forward KL is the Bregman divergence of log-sum-exp,
    KL(q‖p) = logZ(h) − logZ(h_ref) − e·(h − h_ref), with e = E_q[W] from the summary. One walk over
    the vocabulary tiles gathers logZ(h) and E_p[W], so that the backward pass does no work of the
    vocabulary's size: ∇logp = W_y − E_p[W] and ∇KL = E_p[W] − e.

    Args:
        policy_hidden: `[N, D]`; gradients flow to it and to nothing else.
        head: the shared head; it must not require a gradient.
        summary: of the same N tokens.
        targets: `[N]` int64.
        extras: "reverse_kl" (the summary must hold `hidden`), "policy_entropy". Both are exact and come for free, but
            as *measurements*: they carry no gradient here, which would be work of the vocabulary's size. For a
            loss on them use `linear_token_stats`.

    Raises:
        ValueError: a head that requires a gradient or has a softcap, shapes that do not fit, an unknown extra,
            or the reverse KL of a summary without `hidden`.
    """
    _check_frozen("policy_hidden", policy_hidden, head, targets, extras)
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        raise ValueError(
            "frozen_head_token_stats treats the head as a constant, but it requires a gradient; "
            "freeze it or use linear_token_stats"
        )
    if summary.expected_weight.shape != policy_hidden.shape:
        raise ValueError(
            f"the summary holds {tuple(summary.expected_weight.shape)} for hidden states "
            f"{tuple(policy_hidden.shape)}: it was made for other tokens or another model"
        )
    if "reverse_kl" in extras and summary.hidden is None:
        raise ValueError("reverse_kl needs the reference's hidden states, and the summary's `hidden` is None")
    if _on_kernels(policy_hidden, head):
        return cuda.statistics(policy_hidden, head, summary, targets, frozenset(extras))
    policy_logp, forward_kl, reverse_kl, entropy = frozen.policy_statistics(
        policy_hidden, head, summary, targets, frozenset(extras)
    )
    return TokenStats(policy_logp, summary.reference_logp, forward_kl, reverse_kl, entropy)


def index_range(index: Tensor) -> tuple[int, int]:
    """Smallest and largest entry of a non-empty integer tensor, with one wait for the device."""
    low, high = torch.stack(index.aminmax()).tolist()
    return low, high


def _check(targets: Tensor, tokens: int, vocabulary: int, extras: Collection[str]) -> None:
    if targets.shape != (tokens,):
        raise ValueError(f"targets must be [N] = [{tokens}], got {tuple(targets.shape)}")
    low, high = index_range(targets) if tokens else (0, 0)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"targets must lie in [0, {vocabulary}), got values from {low} to {high}. "
            "Padding (-100) does not belong here: pass counted tokens only"
        )
    unknown = set(extras) - set(get_args(Extra))
    if unknown:
        raise ValueError(f"unknown extras {sorted(unknown)}; known are {', '.join(get_args(Extra))}")


def _check_linear(name: str, hidden: Tensor, head: Head) -> None:
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{name} must be [N, {head.weight.shape[1]}] to fit its head [V, D] = "
            f"{tuple(head.weight.shape)}, got {tuple(hidden.shape)}"
        )


def _check_frozen(name: str, hidden: Tensor, head: Head, targets: Tensor, extras: Collection[str] = ()) -> None:
    _check_linear(name, hidden, head)
    _check(targets, hidden.shape[0], head.weight.shape[0], extras)
    if head.softcap is not None:
        raise ValueError(
            "a head with a softcap has no exact summary: its log Z is not a function of W·h alone; "
            "use linear_token_stats"
        )
