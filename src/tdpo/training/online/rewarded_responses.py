"""Responses that the policy was asked for, with their rewards, and what is logged of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...divergences import sampled_kl
from ...environments import Prompt
from ...models import merged_adapter
from ...policy_gradient import moments
from ...sampling.engines import BUILT_IN, ResponseSampler
from ...sampling.sampler import SampledResponse, SamplingSettings, encode_prompts
from .arguments import OnlineArguments

Total = Callable[[Tensor], Tensor]  # sums a vector over processes
Drawing = Callable[[int, int], None]  # (responses that are complete, responses asked for on this process)


@dataclass(frozen=True)
class RewardedResponses:
    """S sampled responses on this process with their prompts and rewards, before anything is learned.

    Args:
        prompts: the prompt of each response.
        responses: in the order of prompts, then of the responses to each.
        prompt_ids: the token ids of each response's prompt.
        rewards: `[S]` float64, what the reward functions gave; None where there is no reward.
        parts: the mean of each reward function, where there are several.
        seconds: that sampling took.
    """

    prompts: list[Prompt]
    responses: list[SampledResponse]
    prompt_ids: list[list[int]]
    rewards: Tensor | None
    parts: dict[str, float]
    seconds: float

    def finished(self) -> Tensor:
        """`[S]` float64: 1 for a response that ended on its own."""
        return torch.tensor([float(response.finished) for response in self.responses], dtype=torch.float64)


def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    args: OnlineArguments,
    *,
    seed: int,
    first: int = 0,
    samples: int | None = None,
    sampler: ResponseSampler = BUILT_IN,
    drawing: Drawing | None = None,
) -> tuple[list[SampledResponse], list[list[int]], float]:
    """Responses of the policy to the prompts, its adapter folded in meanwhile; prompts' token ids; seconds.

    `first` is the number of the first prompt among those of all processes: it says which random numbers it gets.
    `drawing` is called while they are drawn.
    """
    settings = SamplingSettings(
        num_samples=samples or args.samples_per_prompt,
        max_new_tokens=args.max_new_tokens,
        seed=seed,
        batch_size=args.rollout_batch_size,
    )
    texts = [prompt.rendered_from for prompt in prompts]
    indices = list(range(first, first + len(prompts)))
    asked = len(prompts) * settings.num_samples
    progress = None if drawing is None else lambda _, complete: drawing(complete, asked)
    started = time.perf_counter()
    with merged_adapter(model) if args.merge_adapter and sampler is BUILT_IN else nullcontext():
        responses = sampler(model, tokenizer, texts, settings, progress=progress, prompt_indices=indices)
    seconds = time.perf_counter() - started
    encoded = encode_prompts(tokenizer, texts)
    return responses, [encoded[response.prompt_index - first] for response in responses], seconds


def response_numbers(sampled: RewardedResponses, args: OnlineArguments, total: Total) -> dict[str, float]:
    """Rewards as the functions gave them (if there are any), lengths, and the speed of sampling, over all processes."""
    tokens = torch.tensor([float(len(response.token_ids)) for response in sampled.responses], dtype=torch.float64)
    new_tokens, seconds = total(torch.tensor([float(tokens.sum()), sampled.seconds], dtype=torch.float64)).tolist()
    return {
        **reward_moments(sampled.rewards, total), **sampled.parts,
        "length_mean": moments(tokens, total)[0], "finished_share": moments(sampled.finished(), total)[0],
        "generation_seconds": seconds / args.world_size,
        "generation_tokens_per_second": new_tokens * args.world_size / max(seconds, 1e-9),
    }  # fmt: skip


def reward_moments(rewards: Tensor | None, total: Total = lambda sums: sums) -> dict[str, float]:
    """Mean and spread of the rewards over all processes; nothing where there is no reward."""
    if rewards is None:
        return {}
    mean, std = moments(rewards, total)
    return {"reward_mean": mean, "reward_std": std, "reward_variance": std**2}


def measured_kls(stats: dict[str, Tensor], sequences: int, total: Total) -> dict[str, float]:
    """Both exact KLs and the estimators k1, k2, k3, nats per sequence; the policy's entropy, nats per token."""
    logp, reference_logp = stats["policy_logp"], stats["reference_logp"]
    per_sequence = {
        "forward_kl": stats["forward_kl"],
        "reverse_kl": stats["reverse_kl"],
        "kl_k1": sampled_kl(logp, reference_logp, "k1"),
        "kl_k2": sampled_kl(logp, reference_logp, "k2"),
        "kl_k3": sampled_kl(logp, reference_logp, "k3"),
    }
    sums = [value.double().sum() for value in (*per_sequence.values(), stats["policy_entropy"])]
    counts = [logp.new_tensor(sequences), logp.new_tensor(len(logp))]
    *kls, entropy, sequences_in_all, tokens = total(torch.stack([v.double() for v in (*sums, *counts)])).tolist()
    numbers = {name: value / sequences_in_all for name, value in zip(per_sequence, kls, strict=True)}
    return {**numbers, "policy_entropy": entropy / tokens}
