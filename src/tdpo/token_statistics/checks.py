"""Checks of the arguments: the public functions of the package make them once, and the implementations rely on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import torch
from torch import Tensor

from .learned_tokens import KLS
from .types import Extra, Head, JensenShannon, LearnedTokens, NamedExtra, ReferenceSummary, mixture_of

RANGE = "_tdpo_range"  # attribute of an index whose maker has said what its entries are


def note_range(index: Tensor, low: int, high: int) -> None:
    """Say that the entries of `index` lie in [low, high]. Checks then need not wait for its device to tell them."""
    setattr(index, RANGE, (low, high))


def index_range(index: Tensor) -> tuple[int, int]:
    """Smallest and largest entry of a non-empty integer tensor; a wait for the device, unless they were noted."""
    noted: tuple[int, int] | None = getattr(index, RANGE, None)
    if noted is not None:
        return noted
    low, high = torch.stack(index.aminmax()).tolist()
    return low, high


def check_targets_and_extras(targets: Tensor, tokens: int, vocabulary: int, extras: Collection[Extra]) -> None:
    """Raise ValueError unless `targets` are N entries of the vocabulary and `extras` are names of statistics."""
    if targets.shape != (tokens,):
        raise ValueError(f"targets must be [N] = [{tokens}], got {tuple(targets.shape)}")
    low, high = index_range(targets) if tokens else (0, 0)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"targets must lie in [0, {vocabulary}), got values from {low} to {high}. "
            "Padding (-100) does not belong here: pass counted tokens only"
        )
    mixtures = [extra for extra in extras if isinstance(extra, JensenShannon)]
    unknown = [extra for extra in extras if extra not in (*get_args(NamedExtra), *mixtures)]
    if unknown:
        known = ", ".join(get_args(NamedExtra))
        raise ValueError(f"unknown extras {sorted(map(str, unknown))}; known are {known}, and JensenShannon(weight)")
    if len(set(mixtures)) > 1:
        raise ValueError(f"extras can hold one Jensen–Shannon divergence, got {len(set(mixtures))}")


def check_learned_tokens(learned: LearnedTokens, tokens: int, extras: Collection[Extra]) -> None:
    """Raise ValueError unless `learned` names KLs that are computed, and ranges of the N tokens without gaps."""
    has = (True, "reverse_kl" in extras, mixture_of(extras) is not None)
    computed = [name for name, is_computed in zip(KLS, has, strict=True) if is_computed]
    for name, where in learned.items():
        if name not in computed:
            raise ValueError(f"learned_tokens names {name!r}, which is not computed; it can name {', '.join(computed)}")
        if where and not (where.step == 1 and where.start >= 0 and where.stop <= tokens):
            raise ValueError(f"learned_tokens[{name!r}] must be a range within [0, {tokens}) of step 1, got {where}")


def check_logits(policy_logits: Tensor, reference_logits: Tensor) -> None:
    """Raise ValueError unless both models have logits `[N, V]`."""
    if policy_logits.dim() != 2 or policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"policy_logits and reference_logits must both be [N, V], got {tuple(policy_logits.shape)} and "
            f"{tuple(reference_logits.shape)}. Do the two models share a vocabulary?"
        )


def check_hidden(name: str, hidden: Tensor, head: Head) -> None:
    """Raise ValueError unless `hidden` is `[N, D]` for the head's D; `name` is the argument's."""
    if hidden.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{name} must be [N, {head.weight.shape[1]}] to fit its head [V, D] = "
            f"{tuple(head.weight.shape)}, got {tuple(hidden.shape)}"
        )


def check_both_models(policy_hidden: Tensor, policy_head: Head, reference_hidden: Tensor, reference_head: Head) -> None:
    """Raise ValueError unless both have hidden states of the same N tokens and heads of one vocabulary."""
    check_hidden("policy_hidden", policy_hidden, policy_head)
    check_hidden("reference_hidden", reference_hidden, reference_head)
    if policy_head.weight.shape[0] != reference_head.weight.shape[0]:
        raise ValueError(
            f"the policy's head has {policy_head.weight.shape[0]} vocabulary entries and the reference's "
            f"{reference_head.weight.shape[0]}: a KL over the vocabulary needs one tokenizer for both"
        )
    if reference_hidden.shape[0] != policy_hidden.shape[0]:
        raise ValueError(
            f"policy_hidden holds {policy_hidden.shape[0]} tokens, reference_hidden {reference_hidden.shape[0]}"
        )


def check_shared_head(name: str, hidden: Tensor, head: Head, targets: Tensor, extras: Collection[Extra] = ()) -> None:
    """Raise ValueError unless hidden states and targets fit a head that policy and reference can share."""
    check_hidden(name, hidden, head)
    check_targets_and_extras(targets, hidden.shape[0], head.weight.shape[0], extras)
    if head.softcap is not None:
        raise ValueError(
            "a head with a softcap has no exact summary: its log Z is not a function of W·h alone; "
            "use linear_token_stats"
        )


def check_summary(policy_hidden: Tensor, head: Head, summary: ReferenceSummary, extras: Collection[Extra]) -> None:
    """Raise ValueError unless the head is frozen and the summary is of these tokens and suffices for the extras."""
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
    if mixture_of(extras) is not None:
        raise ValueError(
            "a summary knows no entry of the vocabulary, so it gives no Jensen–Shannon divergence; "
            "use linear_token_stats"
        )
    if "reverse_kl" in extras and summary.hidden is None:
        raise ValueError("reverse_kl needs the reference's hidden states, and the summary's `hidden` is None")
