"""What both models say about each response token: the statistics that every loss here is made of.

Three ways to the same numbers:

* `token_stats`: logits in, dense, differentiable; the definition, and the oracle of the other two;
* `linear_token_stats`: hidden states and head weights in; nothing of size [N, V] is held;
* `summarize_reference` + `frozen_head_token_stats`: when both models share one frozen head, the
  reference shrinks to about D numbers a token and never has to run again.

Units: nats per token. Shapes in the signatures of the whole library:

    B  any leading dimensions (*B)  N  flat response tokens: no padding, no prompt
    R  rows of a batch              K  a small number of anything else (of the likeliest tokens, of responses)
    T  positions of a row           V  entries of the vocabulary
    P  prompts (of pairs, pairs)    D  hidden size
    S  responses, each a sequence
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import checks, dense
from .checks import index_range, note_range
from .implementations import implementation_for
from .learned_tokens import constant_elsewhere
from .types import Extra, Head, Impl, JensenShannon, LearnedTokens, MixtureTokenStats, ReferenceSummary, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = [
    "Extra",
    "Head",
    "Impl",
    "JensenShannon",
    "LearnedTokens",
    "MixtureTokenStats",
    "ReferenceSummary",
    "TokenStats",
    "frozen_head_token_stats",
    "index_range",
    "linear_token_stats",
    "note_range",
    "summarize_reference",
    "token_stats",
]


def token_stats(
    policy_logits: Float[Tensor, "N V"],
    reference_logits: Float[Tensor, "N V"],
    targets: Int64[Tensor, " N"],
    *,
    extras: Collection[Extra] = (),
) -> TokenStats:
    """Statistics from logits: the definition, dense.

    Args:
        policy_logits: `[N, V]`, any floating dtype; gradients flow to it.
        reference_logits: `[N, V]`; detached, no gradient ever reaches it.
        targets: `[N]` int64, the token that stands at each position.
        extras: any of "reverse_kl", "policy_entropy", `JensenShannon(weight)`.

    Returns:
        TokenStats `[N]`, or MixtureTokenStats if JensenShannon was asked for. Where the reference has support that the
        policy lacks, `forward_kl` is +inf.

    Raises:
        ValueError: shapes differ, a target lies outside the vocabulary, an extra is unknown.
    """
    checks.check_logits(policy_logits, reference_logits)
    tokens, vocabulary = policy_logits.shape
    checks.check_targets_and_extras(targets, tokens, vocabulary, extras)
    return dense.statistics_of_logits(policy_logits, reference_logits, targets, extras)


def linear_token_stats(
    policy_hidden: Float[Tensor, "N D"],
    policy_head: Head,
    reference_hidden: Float[Tensor, "N D_ref"],
    reference_head: Head,
    targets: Int64[Tensor, " N"],
    *,
    extras: Collection[Extra] = (),
    impl: Impl = "auto",
    learned_tokens: LearnedTokens | None = None,
) -> TokenStats:
    """Statistics from hidden states and head weights, without holding `[N, V]`.

    Args:
        policy_hidden: `[N, D]`; gradients flow to it and, where they require one, to the policy head's
            weight and bias.
        policy_head: `[V, D]` head of the policy.
        reference_hidden: `[N, D_ref]`; D_ref may differ from D. No gradient ever reaches it.
        reference_head: `[V, D_ref]` head of the reference.
        targets: `[N]` int64.
        extras: any of "reverse_kl", "policy_entropy", `JensenShannon(weight)`; all with exact gradients. The last one
            takes a second walk in the forward pass.
        impl: "tiled" walks the vocabulary in tiles and recomputes them in the backward pass; "dense"
            builds the logits in float64 and serves as oracle; "auto" is the fastest one (`implementations.py`).
        learned_tokens: by the name of a KL ("forward_kl", "reverse_kl", "jensen_shannon"), the tokens whose KL is
            learned from. For the others it is a constant, and the backward pass spares the reference's logits. A KL
            that is not named is learned from everywhere. TDPO2 learns from the rejected tokens' forward KL alone.

    Returns:
        TokenStats `[N]`; logits are float32 also when the operands are half precision, because logits
        rounded to bf16 put errors of up to 90 % into small KLs.

    Raises:
        ValueError: shapes that do not fit, vocabularies of different size, a target outside the
            vocabulary, an unknown extra or impl, learned tokens that are none of the N or of a KL not computed.
    """
    checks.check_both_models(policy_hidden, policy_head, reference_hidden, reference_head)
    checks.check_targets_and_extras(targets, policy_hidden.shape[0], policy_head.weight.shape[0], extras)
    heads = policy_head.weight, policy_head.bias, reference_head.weight, reference_head.bias
    linear = implementation_for(impl, policy_hidden, reference_hidden, *heads).linear
    learned = learned_tokens or {}
    checks.check_learned_tokens(learned, policy_hidden.shape[0], extras)
    stats = linear(policy_hidden, policy_head, reference_hidden, reference_head, targets, frozenset(extras), learned)
    return constant_elsewhere(stats, learned)


def summarize_reference(
    reference_hidden: Float[Tensor, "N D"], head: Head, targets: Int64[Tensor, " N"]
) -> ReferenceSummary:
    """Summarise the reference at N tokens for use with `frozen_head_token_stats`; no gradient.

    Args:
        reference_hidden: `[N, D]`.
        head: the one head that policy and reference share; without softcap.
        targets: `[N]` int64.

    Raises:
        ValueError: a softcap (log Z is then no longer a function of W·h alone), or shapes that do not fit.
    """
    checks.check_shared_head("reference_hidden", reference_hidden, head, targets)
    with torch.no_grad():
        implementation = implementation_for("auto", reference_hidden, head.weight, head.bias)
        return implementation.summarize(reference_hidden.detach(), head, targets)


def frozen_head_token_stats(
    policy_hidden: Float[Tensor, "N D"],
    head: Head,
    summary: ReferenceSummary,
    targets: Int64[Tensor, " N"],
    *,
    extras: Collection[Extra] = (),
    learned_tokens: LearnedTokens | None = None,
) -> TokenStats:
    """Statistics when policy and reference share one frozen head: exact, with no reference logits.

    The forward KL is the Bregman divergence of log-sum-exp,
    KL(q‖p) = logZ(h) − logZ(h_ref) − e·(h − h_ref), with e = E_q[W] from the summary. One walk over
    the vocabulary tiles gathers logZ(h) and E_p[W], so that the backward pass of these two does no work of
    the vocabulary's size: ∇logp = W_y − E_p[W] and ∇KL = E_p[W] − e.

    Args:
        policy_hidden: `[N, D]`; gradients flow to it and to nothing else.
        head: the shared head; it must not require a gradient.
        summary: of the same N tokens.
        targets: `[N]` int64.
        extras: "reverse_kl" (the summary must hold `hidden`), "policy_entropy". Both are exact and cost next to
            nothing as measurements. A loss on the reverse KL costs a walk in the backward pass, over the tokens whose
            reverse KL is learned from (`frozen_reverse.py`). The entropy carries no gradient here; for a loss on it use
            `linear_token_stats`.
        learned_tokens: as for `linear_token_stats`.

    Raises:
        ValueError: a head that requires a gradient or has a softcap, shapes that do not fit, an unknown extra,
            the reverse KL of a summary without `hidden`, or learned tokens that do not fit.
    """
    checks.check_shared_head("policy_hidden", policy_hidden, head, targets, extras)
    checks.check_summary(policy_hidden, head, summary, extras)
    implementation = implementation_for("auto", policy_hidden, head.weight, head.bias)
    learned = learned_tokens or {}
    checks.check_learned_tokens(learned, policy_hidden.shape[0], extras)
    stats = implementation.frozen(policy_hidden, head, summary, targets, frozenset(extras), learned)
    return constant_elsewhere(stats, learned)
