"""Responses to held-out prompts: their rewards, both exact sequence KLs, and how varied they are (distinct-n)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batches import PromptResponses, ResponseBatch
from ..diversity import distinct_n
from ..environments import Environment, Prompt, score
from ..sampling.engines import BUILT_IN, ResponseSampler
from ..sampling.sampler import SampledResponse, SamplingSettings, encode_prompts
from ..scores import sum_by_sequence
from ..scoring.head_path import HeadPath, ReferencePart
from ..scoring.layout import grouped_collator
from ..scoring.policy_statistics import PolicyStatistics
from ..token_statistics import Extra
from .held_out_pairs import Progress, collated
from .intervals import Statistic, interval, mean, std

EXTRAS: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")


@dataclass
class HeldOutResponses:
    """What one model said to the held-out prompts, in the order of prompts, then of the responses to each."""

    responses: list[SampledResponse]
    rewards: list[float] | None  # None where the environment has no reward

    def table(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Values of all responses, or of the first few to every prompt, as `[prompts, samples]`."""
        prompts = 1 + max(response.prompt_index for response in self.responses)
        return np.asarray(values, dtype=np.float64).reshape(prompts, -1)

    def first(self, samples: int | None) -> list[SampledResponse]:
        """The first `samples` responses to every prompt; all of them where it is None."""
        return [response for response in self.responses if samples is None or response.sample_index < samples]


def sample_and_score(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    as_reference: bool = False,
    sampler: ResponseSampler = BUILT_IN,
    progress: Progress | None = None,
) -> HeldOutResponses:
    """Sample responses and score them; `as_reference` switches a peft model's adapter off for it."""
    total = len(prompts) * settings.num_samples
    context = model.disable_adapter() if as_reference else nullcontext()
    with context:
        responses = sampler(
            model,
            tokenizer,
            [p.rendered_from for p in prompts],
            settings,
            progress=None if progress is None else lambda _tokens, complete: progress(complete, total),
        )
    return scored(environment, prompts, responses)


def scored(environment: Environment, prompts: Sequence[Prompt], responses: list[SampledResponse]) -> HeldOutResponses:
    """Responses to the prompts with their rewards."""
    if environment.reward is None:
        return HeldOutResponses(responses, None)
    prompt_of_each = [prompts[response.prompt_index] for response in responses]
    return HeldOutResponses(responses, score(environment, prompt_of_each, [response.text for response in responses]))


@dataclass
class Distances:
    """How far the policy is from the reference: a value for each response that was measured, in their order.

    Args:
        forward_kl: exact KL(reference‖policy) along the reference's response, nats per sequence.
        reverse_kl: exact KL(policy‖reference) along the policy's own response, nats per sequence.
        policy_entropy: mean entropy of the policy along its own response, nats per token.
        reference_entropy: mean entropy of the reference along its own response, nats per token.
    """

    forward_kl: list[float]
    reverse_kl: list[float]
    policy_entropy: list[float]
    reference_entropy: list[float]


@torch.no_grad()
def distances(
    model: Any,
    statistics: PolicyStatistics,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    own: Sequence[SampledResponse],
    base: Sequence[SampledResponse],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Distances:
    """Exact sequence KLs and entropies of all responses.

    One forward gives both: beside its prompt stands a response of the policy's own, and one of the reference's.
    """
    encoded = encode_prompts(tokenizer, [p.rendered_from for p in prompts])
    compared = [
        PromptResponses(encoded[one.prompt_index], [one.token_ids, other.token_ids])
        for one, other in zip(own, base, strict=True)
    ]
    device = next(model.parameters()).device
    pad_token_id = tokenizer.pad_token_id
    collator = grouped_collator(model, compared, pad_token_id, other_models=[statistics.reference_model])
    samples = 1 + max(response.sample_index for response in own)
    if samples < batch_size:
        batch_size -= batch_size % samples  # responses to one prompt stay together
    measured = Distances([], [], [], [])
    for start in range(0, len(compared), batch_size):
        batch = collated(collator, compared[start : start + batch_size], device)
        reference = statistics.source.part(model, batch)
        stats = statistics.beside(reference, model, batch, extras=EXTRAS)
        assert stats.reverse_kl is not None and stats.policy_entropy is not None
        _, on_base = sum_by_sequence(stats.forward_kl, batch.sequence_index, batch.num_prompts)
        on_own, _ = sum_by_sequence(stats.reverse_kl, batch.sequence_index, batch.num_prompts)
        entropy, _ = sum_by_sequence(stats.policy_entropy, batch.sequence_index, batch.num_prompts)
        tokens, _ = sum_by_sequence(torch.ones_like(stats.policy_entropy), batch.sequence_index, batch.num_prompts)
        measured.forward_kl += on_base.tolist()
        measured.reverse_kl += on_own.tolist()
        measured.policy_entropy += (entropy / tokens.clamp(min=1)).tolist()
        measured.reference_entropy += _entropy_of_base(statistics.path, reference, batch).tolist()
        if progress is not None:
            progress(len(measured.forward_kl), len(compared))
    return measured


def _entropy_of_base(path: HeadPath, reference: ReferencePart, batch: ResponseBatch) -> Tensor:
    """The reference's mean entropy along its response to each prompt, which is the second one `[prompts]`."""
    own = batch.sequence_index >= batch.num_prompts
    part = replace(reference, values={name: value[own] for name, value in reference.values.items()})
    entropy = path.reference_entropy(part, batch.target_ids[own])
    _, total = sum_by_sequence(entropy, batch.sequence_index[own], batch.num_prompts)
    _, tokens = sum_by_sequence(torch.ones_like(entropy), batch.sequence_index[own], batch.num_prompts)
    return total / tokens.clamp(min=1)


def describe(
    sampled: HeldOutResponses, measured: Distances | None, entropy: Sequence[float] | None = None
) -> dict[str, Any]:
    """The numbers of one model's responses, with 95 % intervals over prompts.

    `measured` is None for the base model, whose KLs are zero; `entropy` is the model's own, nats per token.
    """
    texts = [response.text for response in sampled.responses]
    numbers: dict[str, Any] = {"count": len(texts)}
    if sampled.rewards is not None:
        rewards = sampled.table(sampled.rewards)
        numbers |= _with_interval("reward_mean", rewards, mean) | _with_interval("reward_std", rewards, std)
        numbers["reward_variance"] = float(rewards.var())
    numbers |= {
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "length_mean": float(np.mean([len(response.token_ids) for response in sampled.responses])),
        "finished_share": float(np.mean([response.finished for response in sampled.responses])),
    }
    for name in ("forward_kl", "reverse_kl"):
        if measured is None:
            numbers[name] = 0.0
        else:
            numbers |= _with_interval(name, sampled.table(getattr(measured, name)), mean)
    if entropy is not None:
        numbers |= _with_interval("policy_entropy", sampled.table(entropy), mean)
    return numbers


def _with_interval(name: str, table: NDArray[np.float64], statistic: Statistic) -> dict[str, Any]:
    estimate = float(statistic(table.reshape(1, -1))[0])
    return {name: estimate, f"{name}_interval": interval(table, statistic)}
