"""Which tokens' KLs are learned from, as the caller knows it: the others need no walk in the backward pass.

The gradients would tell as well, but to ask a device for them is a wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .types import LearnedTokens, TokenStats

# The statistics whose gradient needs the reference again, or a walk of its own.
KLS = ("forward_kl", "reverse_kl", "jensen_shannon")
# Devices whose numbers can be looked at without a wait. A test of waits empties this.
READ_FREELY = {"cpu"}


def constant_elsewhere(stats: TokenStats, learned: LearnedTokens) -> TokenStats:
    """`stats` with KLs that are constants but for the tokens that are learned from; the values are the same."""
    return replace(stats, **{name: _constant_outside(getattr(stats, name), tokens) for name, tokens in learned.items()})


def _constant_outside(kl: Tensor, tokens: range) -> Tensor:
    if not kl.requires_grad or tokens == range(len(kl)):
        return kl
    if not tokens:
        return kl.detach()
    constant = kl.detach()
    return torch.cat([constant[: tokens.start], kl[tokens.start : tokens.stop], constant[tokens.stop :]])


def tokens_with_gradient(learned: LearnedTokens, gradients: Mapping[str, Tensor | None], count: int) -> range:
    """The smallest range of the `count` tokens that holds all whose KLs have a gradient, as far as is known unasked.

    Args:
        learned: as the caller said; a KL that it does not name is learned from everywhere.
        gradients: of the KLs, by their names; None where autograd brings none.
    """
    ranges = [learned.get(name, range(count)) for name, gradient in gradients.items() if gradient is not None]
    ranges = [tokens for tokens in ranges if tokens]
    return range(min(r.start for r in ranges), max(r.stop for r in ranges)) if ranges else range(0)


def narrowed(tokens: range, gradients: Sequence[Tensor | None]) -> range:
    """`tokens` without those at both ends that have no gradient after all, where looking is no wait."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not tokens or not present or present[0].device.type not in READ_FREELY:
        return tokens
    has_gradient = torch.stack([gradient[tokens.start : tokens.stop] != 0 for gradient in present]).any(0)
    places = has_gradient.nonzero()[:, 0].tolist()
    return range(tokens.start + places[0], tokens.start + places[-1] + 1) if places else range(0)
