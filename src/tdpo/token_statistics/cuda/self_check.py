"""One small computation on which kernels and plain walk must agree, before the kernels are trusted on a device.

A driver, a compiler or a card that nobody has tried may give other numbers, or none. So the device itself is asked,
once for each dtype in a process. Where it does not agree the plain walk runs, and the log says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import cuda, frozen, tiled
from ..types import Extra, Head, JensenShannon, MixtureTokenStats, ReferenceSummary, TokenStats

# Largest relative distance of statistics and gradients: rounding stays far below, a wrong sum far above.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
TOKENS, VOCABULARY, WIDTH = 3, 100, 16

Linear = Callable[..., TokenStats]
Summarize = Callable[[Tensor, Head, Tensor], ReferenceSummary]


@functools.cache
def kernels_agree(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give the plain walk's statistics and gradients on this device; says once why not."""
    try:
        distance = max(_distances(device, dtype))
        if distance <= TOLERANCE.get(dtype, 5e-2):
            return True
        reason = f"their numbers are off by {distance:.2g} (relative)"
    except torch.OutOfMemoryError:
        raise  # it says nothing of the kernels, and the answer is kept
    except Exception as error:  # compilers and drivers raise what they like
        reason = f"they fail with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    logging.getLogger(__name__).warning(
        "The kernels of the head are not used on %s in %s: %s. The plain walk runs, several times slower. "
        "Please report this with the versions of torch and triton and the name of the card.",
        device,
        str(dtype).removeprefix("torch."),
        reason,
    )
    return False


def _distances(device: torch.device, dtype: torch.dtype) -> Iterator[float]:
    # Whatever the caller has switched off: the answer holds for all later calls.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        draw = torch.Generator().manual_seed(0)  # the global random state stays as it is

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=draw)).to(device, dtype)

        hidden, reference = normal(TOKENS, WIDTH), normal(TOKENS, WIDTH)
        weight, other = normal(VOCABULARY, WIDTH, scale=0.3), normal(VOCABULARY, WIDTH, scale=0.3)
        targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw).to(device)
        for extras in (frozenset[Extra](), frozenset[Extra]([JensenShannon(0.3)])):
            ours = _trained(cuda.linear_statistics, hidden, weight, reference, Head(other), targets, extras)
            plain = _trained(tiled.linear_statistics, hidden, weight, reference, Head(other), targets, extras)
            yield from map(_relative, ours, plain)
        ours = _frozen(cuda.summarize, cuda.statistics, hidden, reference, Head(weight), targets)
        plain = _frozen(frozen.summarize, frozen.statistics, hidden, reference, Head(weight), targets)
        yield from map(_relative, ours, plain)


def _trained(
    linear: Linear,
    hidden: Tensor,
    weight: Tensor,
    reference: Tensor,
    reference_head: Head,
    targets: Tensor,
    extras: frozenset[Extra],
) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    stats = linear(hidden, Head(weight), reference, reference_head, targets, extras, {})
    return [*_of(stats), *torch.autograd.grad(_objective(stats), [hidden, weight])]


def _frozen(
    summarize: Summarize, statistics: Linear, hidden: Tensor, reference: Tensor, head: Head, targets: Tensor
) -> list[Tensor]:
    hidden = hidden.clone().requires_grad_()
    with torch.no_grad():
        summary = summarize(reference, head, targets)
    stats = statistics(hidden, head, summary, targets, frozenset(), {})
    return [*_of(stats), *torch.autograd.grad(_objective(stats), [hidden])]


def _of(stats: TokenStats) -> list[Tensor]:
    return [value.detach() for value in (stats.policy_logp, stats.reference_logp, *_divergences(stats))]


def _divergences(stats: TokenStats) -> list[Tensor]:
    mixture = stats.jensen_shannon if isinstance(stats, MixtureTokenStats) else None
    return [stats.forward_kl] if mixture is None else [stats.forward_kl, mixture]


def _objective(stats: TokenStats) -> Tensor:
    """A sum in which every token's log-probability and divergences have a gradient of their own."""
    weights = torch.linspace(0.5, 1.5, TOKENS, device=stats.policy_logp.device)
    return (weights * stats.policy_logp).sum() - sum((weights.flip(0) * kl).sum() for kl in _divergences(stats))


def _relative(value: Tensor, expected: Tensor) -> float:
    """inf where a value is not finite."""
    distance = (value.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-6)
    return float(torch.nan_to_num(distance, nan=torch.inf))
