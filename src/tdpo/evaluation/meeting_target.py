"""The factor on an adapter at which the policy's KL to its reference is a target.

A controller brings the KL near to its target while the policy learns, and from batch to batch it swings. What the last
update leaves can be moved on exactly, along the line from the reference (factor 0) through the trained policy (1):
near the reference the KL is quadratic in the factor, so that two or three measurements find it. No reward is looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..batches import PromptResponses
from ..kl_choices import KLDirection
from ..models.adapter_scaling import scaling_adapter
from ..sampling.sampler import SamplingSettings, encode_prompts, sample
from ..scoring.layout import grouped_collator
from ..scoring.policy_statistics import PolicyStatistics
from ..token_statistics import Extra
from .held_out_pairs import Progress, collated

TOLERANCE = 0.02  # of the target: much less than what so many responses can tell
MOST_MEASUREMENTS = 5
LEAST, MOST = 0.1, 2.0  # of the factor: above it is another policy than the one that was trained
PROMPTS_AT_ONCE = 8


@dataclass(frozen=True)
class Meeting:
    """What was found, KLs in nats per response.

    Attributes:
        factor: on the adapter.
        kl: there, over the responses that were measured.
        measured: all factors with their KLs, in the order in which they were tried; the first is 1.
    """

    target: float
    factor: float
    kl: float
    measured: list[tuple[float, float]] = field(default_factory=list)


def meeting_factor(kl_at: Callable[[float], float], target: float) -> Meeting:
    """The factor at which `kl_at(factor)` is `target`, or the nearest that was measured.

    Raises:
        ValueError: the KL at factor 1 is 0 or not finite: the policy has not moved, or is broken.
    """
    measured = [(1.0, kl_at(1.0))]
    if not 0.0 < measured[0][1] < math.inf:
        raise ValueError(f"the KL of the trained policy is {measured[0][1]} nats: no factor makes it {target:g}")
    while len(measured) < MOST_MEASUREMENTS and abs(_off(measured[-1], target)) > TOLERANCE:
        factor = _next_factor(measured, target)
        if any(factor == tried for tried, _ in measured):  # the bound is reached
            break
        measured.append((factor, kl_at(factor)))
    factor, kl = min(measured, key=lambda pair: abs(_off(pair, target)))
    return Meeting(target, factor, kl, measured)


def _off(pair: tuple[float, float], target: float) -> float:
    return math.log(max(pair[1], 1e-12) / target)


def _next_factor(measured: Sequence[tuple[float, float]], target: float) -> float:
    """Where a power law meets the target: through the two nearest measurements, or the square where there is one."""
    near = sorted(measured, key=lambda pair: abs(_off(pair, target)))[:2]
    power = 2.0
    if len(near) == 2:
        rise = (_off(near[0], target) - _off(near[1], target)) / math.log(near[0][0] / near[1][0])
        power = min(max(rise, 0.5), 4.0)
    factor = near[0][0] * math.exp(-_off(near[0], target) / power)
    return min(max(factor, LEAST), MOST)


def scale_to_target(
    policy: Any,
    statistics: PolicyStatistics,
    tokenizer: Any,
    prompts: Sequence[Any],
    settings: SamplingSettings,
    target: float,
    direction: KLDirection,
    *,
    progress: Progress | None = None,
) -> Meeting:
    """Find the factor on the adapter of `policy` at which its exact KL is `target`, nats per response.

    Args:
        policy: with a LoRA adapter; it has its own weights again afterwards.
        statistics: policy and reference; the reference is the policy's base, or another model.
        prompts: what is answered, as chat templates take them. Not those that the policy is judged on.
        settings: of sampling. Responses own their random numbers, so that the KLs of two factors differ by little
            beside what the factor does.
        direction: reverse: along responses of the policy, drawn anew at every factor; forward: along the reference's.

    Raises:
        ValueError: the adapter is not plain LoRA; the KL is 0 or not finite.
    """
    encoded = encode_prompts(tokenizer, prompts)

    def answered(by_reference: bool) -> list[PromptResponses]:
        model = statistics.reference_model if by_reference and statistics.reference_model is not None else policy
        with policy.disable_adapter() if by_reference and model is policy else nullcontext():
            responses = sample(model, tokenizer, prompts, settings)
        of_prompt: list[list[list[int]]] = [[] for _ in encoded]
        for response in responses:
            of_prompt[response.prompt_index].append(response.token_ids)
        return [PromptResponses(ids, texts) for ids, texts in zip(encoded, of_prompt, strict=True)]

    fixed = answered(by_reference=True) if direction == "forward" else None
    tried = itertools.count(1)
    with scaling_adapter(policy) as scale:

        def kl_at(factor: float) -> float:
            scale(factor)
            kl = _mean_kl(policy, statistics, fixed or answered(by_reference=False), tokenizer.pad_token_id, direction)
            if progress is not None:
                progress(next(tried), MOST_MEASUREMENTS)
            return kl

        return meeting_factor(kl_at, target)


@torch.no_grad()
def _mean_kl(
    policy: Any,
    statistics: PolicyStatistics,
    answered: Sequence[PromptResponses],
    pad_token_id: int,
    direction: KLDirection,
) -> float:
    """The mean over responses of the exact KL along each, in nats."""
    collator = grouped_collator(policy, answered, pad_token_id, other_models=[statistics.reference_model])
    device = next(policy.parameters()).device
    extras: tuple[Extra, ...] = ("reverse_kl",) if direction == "reverse" else ()
    total = 0.0
    for start in range(0, len(answered), PROMPTS_AT_ONCE):
        batch = collated(collator, answered[start : start + PROMPTS_AT_ONCE], device)
        stats = statistics(policy, batch, extras=extras)
        per_token = stats.reverse_kl if direction == "reverse" else stats.forward_kl
        assert per_token is not None
        total += float(per_token.double().sum())
    return total / sum(len(unit.responses) for unit in answered)
