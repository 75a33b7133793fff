"""One iteration's responses with all that learning from them needs.

Nothing here is computed again while the policy learns: what the reference says, the log-probabilities of the policy
that sampled and the old values are kept for every response token, flat, in the order of a batch of all responses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...batches import FlatOrder, PromptResponses, moved
from ...policy_gradient import KLConstraint, RewardScale, explained_variance, kl_penalty, moments
from .advantages import advantages_with_critic, advantages_within_prompts
from .config import PPOConfig
from .judging import ScoredTokens
from .objective import RolloutTokens
from .rewarded_responses import RewardedResponses, Total, measured_kls, response_numbers


@dataclass
class Rollout:
    """The responses of one iteration on this process, and flat values of their N response tokens.

    Args:
        iteration: counted from 0.
        units: what minibatches are drawn from: a prompt with the responses that are drawn together. Tokens are flat in
            the order of a batch of all units.
        old_logp, advantages: `[N]`.
        old_values, returns: `[N]`, of the critic; None where there is none.
        reference: what the reference says, tensors with a row for each token.
        kl_scale: factor of a KL in the loss, so that whitening does not change its weight.
        importance_weights: `[N]`, of the policy's loss; None where every token counts alike.
    """

    iteration: int
    units: list[PromptResponses]
    old_logp: Tensor
    old_values: Tensor | None
    advantages: Tensor
    returns: Tensor | None
    reference: dict[str, Tensor]
    kl_scale: float
    importance_weights: Tensor | None = None

    @cached_property
    def order(self) -> FlatOrder:
        """The places of the units' tokens."""
        return FlatOrder(self.units)

    def at(self, tokens: Tensor, device: torch.device) -> RolloutTokens:
        """What an update needs of these tokens, flat indices `[N]`."""

        tokens = moved(tokens, device)
        names = ("old_logp", "advantages", "old_values", "returns", "importance_weights")
        named = {name: getattr(self, name) for name in names}
        for name, value in named.items():
            if value is not None:
                setattr(self, name, moved(value, device))  # which copies once an iteration, not for every micro-batch
        return RolloutTokens(**{n: getattr(self, n)[tokens] for n, value in named.items() if value is not None})

    def state_dict(self) -> dict[str, Any]:
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**state, "units": [(unit.prompt_ids, [*unit.responses]) for unit in self.units]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Rollout:
        """A rollout of `state_dict`, as it is now or as earlier versions wrote it into checkpoints.

        Those held the responses' lengths as well, no importance weights, and units as (prompt, first response, second
        response or []).
        """
        own = {f.name: state[f.name] for f in fields(cls) if f.name in state or f.name != "importance_weights"}
        return cls(**{**own, "units": [_unit(*parts) for parts in state["units"]]})


def _unit(prompt_ids: list[int], *responses: Any) -> PromptResponses:
    """A unit of a checkpoint: a list of responses, or one or two as in older checkpoints, an empty one for none."""
    if len(responses) == 1:
        return PromptResponses(prompt_ids, responses[0])
    return PromptResponses(prompt_ids, [ids for ids in responses if ids])


def task_rewards(
    sampled: RewardedResponses, args: PPOConfig, scale: RewardScale, total: Total
) -> tuple[Tensor, dict[str, float]]:
    """Rewards `[S]` as the advantages see them, before the KL; and what is logged of the responses.

    What is logged is what the reward functions gave, before normalisation, clipping and the penalty for a missing end.
    """
    assert sampled.rewards is not None
    rewards, numbers = sampled.rewards, response_numbers(sampled, args, total)
    if args.normalize_rewards:
        scale.update(args.completions, numbers["reward_mean"], numbers["reward_std"])
        rewards = scale.apply(rewards)
    if args.reward_clip is not None:
        rewards = rewards.clamp(-args.reward_clip, args.reward_clip)
    return rewards - args.missing_end_penalty * (1.0 - sampled.finished()), numbers


def drawn_together(args: PPOConfig) -> int:
    """How many responses of a prompt are one unit: a minibatch holds all of them or none.

    They share the prompt's computation. Any number would do that divides both the responses of a prompt and those of a
    micro-batch; it is two where two divides them, and else one.
    """
    return 2 if args.samples_per_prompt % 2 == 0 and args.per_device_train_batch_size % 2 == 0 else 1


def units_of(sampled: RewardedResponses, together: int) -> list[PromptResponses]:
    """Units of `together` responses of a prompt each, in the order in which they were sampled."""
    ids = [response.token_ids for response in sampled.responses]
    starts = range(0, len(ids), together)
    return [PromptResponses(sampled.prompt_ids[at], ids[at : at + together]) for at in starts]


def make_rollout(
    iteration: int,
    units: list[PromptResponses],
    scored: ScoredTokens,
    task_rewards: Tensor,
    constraint: KLConstraint,
    coefficient: float,
    args: PPOConfig,
    total: Total,
    importance_weights: Tensor | None = None,
) -> tuple[Rollout, dict[str, float]]:
    """Rewards with every penalty, advantages and returns of scored responses; and numbers to log.

    Args:
        units: of all responses, in the order in which they were sampled.
        scored: what the models say of their tokens.
        task_rewards: `[S]` float64, the reward of each response in the order in which they were sampled, after
            normalisation, clipping and the penalty for a missing end.
    """
    order = FlatOrder(units)
    stats = {name: value.double().cpu() for name, value in scored.stats.items()}
    kl = kl_penalty(constraint, stats["policy_logp"], stats["reference_logp"])
    rewards = -coefficient * kl
    rewards[order.lengths.cumsum(0) - 1] += task_rewards[order.by_prompt]
    logged, returns = {}, None
    if scored.values is None:
        advantages = advantages_within_prompts(rewards, order, args)
    else:
        values = scored.values.double().cpu()
        advantages, returns = advantages_with_critic(rewards, values, order, args)
        logged["explained_variance"] = explained_variance(values, returns, total)
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
        returns=None if returns is None else returns.float(),
        reference=scored.reference,
        kl_scale=scale,
        importance_weights=importance_weights,
    )
    logged["advantage_std"] = std
    sizes = order.lengths.tolist()
    per_sequence = torch.stack([row.sum() for row in rewards.split(sizes)])
    logged["penalized_reward_mean"] = moments(per_sequence, total)[0]
    return rollout, {**logged, **measured_kls(stats, len(sizes), total)}
