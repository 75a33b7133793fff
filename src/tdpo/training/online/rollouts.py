"""One iteration's completions with all that learning from them needs: sampled, scored, judged once.

Nothing here is computed again while the policy learns: the reference's part, the sampling policy's log-probabilities
and the old values are kept for every response token, flat, in the order of the sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...batches import FlatOrder, PromptResponses, ResponseBatch, ResponseCollator
from ...divergences import sampled_kl
from ...environments import Prompt
from ...models import Reference, kept_reference, merged_adapter
from ...policy_gradient import KLConstraint, RewardScale, explained_variance, gae, kl_penalty, moments
from ...sampling.sampler import Completion, SamplingSettings, encode_prompts, sample
from ...scoring.head_path import HeadPath, ReferencePart
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.reference_source import LiveReference, copied_head
from ...token_statistics import Extra
from .config import PPOConfig
from .critic import Critic

EXTRAS: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")
Total = Callable[[Tensor], Tensor]  # sums a vector over processes


@dataclass
class Rollout:
    """The responses of one iteration on this process, and flat values of their N response tokens.

    Args:
        iteration: counted from 0.
        units: what minibatches are drawn from: a prompt with the responses that are drawn together. Tokens are flat in
            the order of a batch of all units.
        old_logp, old_values, advantages, returns: `[N]`.
        reference: what the reference says, tensors with a row for each token.
        kl_scale: factor of a KL in the loss, so that whitening does not change its weight.
    """

    iteration: int
    units: list[PromptResponses]
    old_logp: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    reference: dict[str, Tensor]
    kl_scale: float

    @cached_property
    def order(self) -> FlatOrder:
        """The places of the units' tokens."""
        return FlatOrder(self.units)

    def state_dict(self) -> dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**state, "units": [(unit.prompt_ids, [*unit.responses]) for unit in self.units]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollout:
        """A rollout of `state_dict`, as it is now or as earlier versions wrote it into checkpoints.

        Those held the responses' lengths as well, and units as (prompt, first response, second response or []).
        """
        own = {f.name: state[f.name] for f in fields(cls)}
        return cls(**{**own, "units": [_unit(*parts) for parts in state["units"]]})


def _unit(prompt_ids: list[int], *responses: Any) -> PromptResponses:
    """A unit of a checkpoint: a list of responses, or one or two as in older checkpoints, an empty one for none."""
    if len(responses) == 1:
        return PromptResponses(prompt_ids, responses[0])
    return PromptResponses(prompt_ids, [ids for ids in responses if ids])


@dataclass(frozen=True)
class Sampled:
    """The completions of one iteration on this process, with their prompts and rewards, before anything is learned."""

    prompts: list[Prompt]  # one a completion
    completions: list[Completion]
    encoded: list[list[int]]  # token ids of each completion's prompt
    rewards: Tensor  # [S] float64, what the reward functions gave
    parts: dict[str, float]  # the mean of each of them, where there are several
    seconds: float


@dataclass
class Scored:
    """What both models and the critic say of N response tokens, in the order of the sequences."""

    stats: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    reference: dict[str, Tensor] = field(default_factory=dict)


def sample_completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    args: PPOConfig,
    *,
    seed: int,
    first: int = 0,
    samples: int | None = None,
) -> tuple[list[Completion], list[list[int]], float]:
    """Completions of the prompts by the policy, its adapter folded in meanwhile; prompts' token ids; seconds.

    `first` is the number of the first prompt among those of all processes: it says which random numbers it gets.
    """
    settings = SamplingSettings(
        num_samples=samples or args.samples_per_prompt,
        max_new_tokens=args.max_new_tokens,
        seed=seed,
        batch_size=args.rollout_batch_size,
    )
    texts = [prompt.rendered_from for prompt in prompts]
    indices = list(range(first, first + len(prompts)))
    started = time.perf_counter()
    if args.merge_adapter:
        with merged_adapter(model):
            completions = sample(model, tokenizer, texts, settings, prompt_indices=indices)
    else:
        completions = sample(model, tokenizer, texts, settings, prompt_indices=indices)
    seconds = time.perf_counter() - started
    encoded = encode_prompts(tokenizer, texts)
    return completions, [encoded[c.prompt_index - first] for c in completions], seconds


def task_rewards(
    sampled: Sampled, args: PPOConfig, scale: RewardScale, total: Total
) -> tuple[Tensor, dict[str, float]]:
    """Rewards `[S]` as the advantages see them, before the KL; and what is logged of the completions.

    What is logged is what the reward functions gave, before normalisation, clipping and the penalty for a missing end.
    """
    mean, std = moments(sampled.rewards, total)
    rewards = sampled.rewards
    if args.normalize_rewards:
        scale.update(args.rollout_size, mean, std)
        rewards = scale.apply(rewards)
    if args.reward_clip is not None:
        rewards = rewards.clamp(-args.reward_clip, args.reward_clip)
    finished = torch.tensor([float(c.finished) for c in sampled.completions], dtype=torch.float64)
    tokens = torch.tensor([float(len(c.token_ids)) for c in sampled.completions], dtype=torch.float64)
    new_tokens, seconds = total(torch.tensor([float(tokens.sum()), sampled.seconds], dtype=torch.float64)).tolist()
    logged = {
        "reward_mean": mean, "reward_std": std, "reward_variance": std**2, **sampled.parts,
        "length_mean": moments(tokens, total)[0], "finished_share": moments(finished, total)[0],
        "generation_seconds": seconds / args.world_size,
        "generation_tokens_per_second": new_tokens * args.world_size / max(seconds, 1e-9),
    }  # fmt: skip
    return rewards - args.missing_end_penalty * (1.0 - finished), logged


def drawn_together(args: PPOConfig) -> int:
    """How many responses of a prompt are one unit: a minibatch holds all of them or none.

    They share the prompt's computation. Any number would do that divides both the responses of a prompt and those of a
    micro-batch; it is two where two divides them, and else one.
    """
    return 2 if args.samples_per_prompt % 2 == 0 and args.per_device_train_batch_size % 2 == 0 else 1


def units_of(sampled: Sampled, together: int) -> list[PromptResponses]:
    """Units of `together` responses of a prompt each, in the order in which they were sampled."""
    ids = [completion.token_ids for completion in sampled.completions]
    starts = range(0, len(ids), together)
    return [PromptResponses(sampled.encoded[at], ids[at : at + together]) for at in starts]


def rollout_statistics(policy: Any, start: Reference, path: HeadPath, device: torch.device) -> PolicyStatistics:
    """The statistics of PPO, whose reference runs once over each rollout and stays what it is while the policy learns.

    Args:
        policy: the model that is about to be trained.
        start: its reference, as `reference_at_start` gives it.
        path: the head path; not the one of full logits.
        device: where the reference runs.
    """
    head = None if path.name == "frozen" else copied_head(start, device)
    reference = kept_reference(policy, start)
    if reference.model is not None:
        reference.model.to(device)
    return PolicyStatistics(path, LiveReference(reference, path, kept_head=head))


class Judge:
    """Runs policy, reference and critic once over sampled completions, and makes rewards and advantages of it."""

    def __init__(
        self,
        statistics: PolicyStatistics,
        critic: Critic,
        collator: ResponseCollator,
        args: PPOConfig,
        autocast: Callable[[], Any],
    ) -> None:
        self.statistics, self.critic, self.collator = statistics, critic, collator
        self.args, self.autocast = args, autocast

    @torch.no_grad()
    def score(self, policy: Any, units: Sequence[PromptResponses]) -> Scored:
        """Both models and the critic on all units, in micro-batches without a gradient, policy in evaluation mode.

        Batches may be twice as large as in training. Each is put to the places of its tokens in a batch of all units.
        """
        was_training = policy.training
        policy.eval()
        order, parts = FlatOrder(units), []
        size = max(1, 2 * self.args.per_device_train_batch_size // len(units[0].responses))
        batches = [range(start, min(start + size, len(units))) for start in range(0, len(units), size)]
        try:
            for numbers in batches:
                parts.append(self._score_batch(policy, [units[u] for u in numbers]))
        finally:
            policy.train(was_training)
        # Of the joined tensors, row places[i] of the result is row i.
        places = torch.cat([order.tokens_of(numbers) for numbers in batches])
        return _joined(parts, places.argsort())

    def _score_batch(self, policy: Any, units: list[PromptResponses]) -> Scored:
        batch = self.batch(units)
        with self.autocast():
            path = self.statistics.path
            reference = self.statistics.source.part(policy, batch)
            hidden = path.policy_output(policy, batch)
            stats = path.token_stats(hidden, reference, batch.target_ids, extras=EXTRAS)
            values = self.critic(hidden, batch)
        # Of a summary, only measuring the reverse KL needs "hidden", and that is done.
        kept = {k: v for k, v in reference.values.items() if k != "hidden" or path.name != "frozen"}
        return Scored({k: v for k, v in vars(stats).items() if v is not None}, values, kept)

    def recalled(self, rollout: Rollout, tokens: Tensor) -> ReferencePart:
        """What the reference said about these tokens of the rollout, flat indices `[N]`, without running it again."""
        values = {name: value[tokens.to(value.device)] for name, value in rollout.reference.items()}
        source = self.statistics.source
        return ReferencePart(values, source.kept_head if isinstance(source, LiveReference) else None)

    def batch(self, units: Sequence[PromptResponses]) -> ResponseBatch:
        inputs = {name: value.to(self.args.device) for name, value in self.collator(units).items()}
        return ResponseBatch.from_inputs(inputs)


def _joined(parts: Sequence[Scored], order: Tensor) -> Scored:
    """The parts one after the other, and of the whole the rows `order` `[N]`."""

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(tensors))
        return whole[order.to(whole.device)]

    return Scored(
        {name: rows([part.stats[name] for part in parts]) for name in parts[0].stats},
        rows([part.values for part in parts]),
        {name: rows([part.reference[name] for part in parts]) for name in parts[0].reference},
    )


def make_rollout(
    iteration: int,
    units: list[PromptResponses],
    scored: Scored,
    task_rewards: Tensor,
    constraint: KLConstraint,
    coefficient: float,
    args: PPOConfig,
    total: Total,
) -> tuple[Rollout, dict[str, float]]:
    """Rewards with every penalty, advantages and returns of scored completions; and numbers to log.

    Args:
        units: of all responses, in the order in which they were sampled.
        scored: what the models say of their tokens.
        task_rewards: `[S]` float64, the reward of each response in the order in which they were sampled, after
            normalisation, clipping and the penalty for a missing end.
    """
    order = FlatOrder(units)
    stats = {name: value.double().cpu() for name, value in scored.stats.items()}
    values = scored.values.double().cpu()
    kl = kl_penalty(constraint, stats["policy_logp"], stats["reference_logp"])
    rewards = -coefficient * kl
    rewards[order.lengths.cumsum(0) - 1] += task_rewards[order.by_prompt]
    sizes = order.lengths.tolist()
    mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in sizes], batch_first=True)
    by_row, old = (pad_sequence(list(v.split(sizes)), batch_first=True) for v in (rewards, values))
    advantages, returns = (v[mask] for v in gae(by_row, old, mask, gamma=args.gamma, lam=args.gae_lambda))
    mean, std = moments(advantages, total)
    scale = 1.0
    if args.whiten_advantages and std > 0:
        advantages, scale = (advantages - mean) / std, 1.0 / std
    rollout = Rollout(
        iteration=iteration,
        units=units,
        old_logp=scored.stats["policy_logp"],
        old_values=scored.values,
        advantages=advantages.float(),
        returns=returns.float(),
        reference=scored.reference,
        kl_scale=scale,
    )
    logged = {"explained_variance": explained_variance(values, returns), "advantage_std": std}
    per_sequence = torch.stack([row.sum() for row in rewards.split(sizes)])
    logged["penalized_reward_mean"] = moments(per_sequence, total)[0]
    return rollout, {**logged, **measured_kls(stats, len(sizes), total)}


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
    *found, entropy, sequences_in_all, tokens = total(torch.stack([v.double() for v in (*sums, *counts)])).tolist()
    logged = {name: value / sequences_in_all for name, value in zip(per_sequence, found, strict=True)}
    return {**logged, "policy_entropy": entropy / tokens}
