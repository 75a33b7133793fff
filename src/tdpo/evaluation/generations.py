"""Generations on held-out prompts: rewards, both exact sequence KLs, distinct-n."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..batches import PairCollator, TokenizedPair
from ..diversity import distinct_n
from ..environments import Environment, Prompt, score
from ..generation import Completion, SamplingSettings, encode_prompts, sample
from ..scores import sum_by_sequence
from ..token_statistics import Extra
from ..training.layout import share_prefixes
from ..training.statistics import PolicyStatistics
from .intervals import Statistic, interval, mean, std
from .pairs import Progress, collated

REVERSE: tuple[Extra, ...] = ("reverse_kl",)


@dataclass
class Sampled:
    """What one model said to the held-out prompts: completions in the order of prompts, then samples."""

    completions: list[Completion]
    rewards: list[float]

    def table(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Values of all completions as `[prompts, samples]`."""
        samples = 1 + max(c.sample_index for c in self.completions)
        return np.asarray(values, dtype=np.float64).reshape(-1, samples)


def sample_and_score(
    model: Any,
    tokenizer: Any,
    environment: Environment,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    as_reference: bool = False,
    progress: Progress | None = None,
) -> Sampled:
    """Sample responses and score them; `as_reference` switches a peft model's adapter off for it."""
    total = len(prompts) * settings.num_samples
    context = model.disable_adapter() if as_reference else nullcontext()
    with context:
        completions = sample(
            model,
            tokenizer,
            [p.prompt for p in prompts],
            settings,
            progress=None if progress is None else lambda _tokens, complete: progress(complete, total),
        )
    return scored(environment, prompts, completions)


def scored(environment: Environment, prompts: Sequence[Prompt], completions: list[Completion]) -> Sampled:
    """Completions of the prompts with their rewards."""
    rewards = score(environment, [prompts[c.prompt_index] for c in completions], [c.text for c in completions])
    return Sampled(completions, rewards)


@torch.no_grad()
def sequence_kls(
    model: Any,
    statistics: PolicyStatistics,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    trained: Sampled,
    base: Sampled,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[list[float], list[float]]:
    """Exact sequence KLs, nats, one per completion: (forward on the base's samples, reverse on the policy's own).

    One forward gives both: the policy's sample stands where a pair has its chosen response, the
    reference's where it has the rejected one.
    """
    encoded = encode_prompts(tokenizer, [p.prompt for p in prompts])
    pairs = [
        TokenizedPair(encoded[own.prompt_index], own.token_ids, other.token_ids)
        for own, other in zip(trained.completions, base.completions, strict=True)
    ]
    device = next(model.parameters()).device
    pad_token_id = tokenizer.pad_token_id
    collator = PairCollator(pad_token_id, share_prefixes(model, pairs, pad_token_id, "auto"))
    forward: list[float] = []
    reverse: list[float] = []
    for start in range(0, len(pairs), batch_size):
        batch = collated(collator, pairs[start : start + batch_size], device)
        stats = statistics(model, batch, extras=REVERSE)
        assert stats.reverse_kl is not None
        _, on_base = sum_by_sequence(stats.forward_kl, batch.sequence_index, batch.num_pairs)
        on_own, _ = sum_by_sequence(stats.reverse_kl, batch.sequence_index, batch.num_pairs)
        forward += on_base.tolist()
        reverse += on_own.tolist()
        if progress is not None:
            progress(len(forward), len(pairs))
    return forward, reverse


def describe(sampled: Sampled, forward: Sequence[float] | None, reverse: Sequence[float] | None) -> dict[str, Any]:
    """The numbers of one model's generations, with 95 % intervals over prompts; no KLs means zero, as for the base."""
    texts = [c.text for c in sampled.completions]
    rewards = sampled.table(sampled.rewards)
    numbers: dict[str, Any] = {
        "count": len(texts),
        **_with_interval("reward_mean", rewards, mean),
        **_with_interval("reward_std", rewards, std),
        "reward_variance": float(rewards.var()),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "length_mean": float(np.mean([len(c.token_ids) for c in sampled.completions])),
        "finished_share": float(np.mean([c.finished for c in sampled.completions])),
    }
    for name, values in (("forward_kl", forward), ("reverse_kl", reverse)):
        if values is None:
            numbers[name] = 0.0
        else:
            numbers |= _with_interval(name, sampled.table(values), mean)
    return numbers


def _with_interval(name: str, table: NDArray[np.float64], statistic: Statistic) -> dict[str, Any]:
    estimate = float(statistic(table.reshape(1, -1))[0])
    return {name: estimate, f"{name}_interval": interval(table, statistic)}
