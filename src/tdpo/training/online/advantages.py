"""What each sampled token is worth to the policy: with a critic's values, or against the prompt's other responses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...batches import FlatOrder
from ...policy_gradient import gae, group_relative, leave_one_out
from .config import PPOConfig


def advantages_with_critic(rewards: Tensor, values: Tensor, order: FlatOrder, args: PPOConfig) -> tuple[Tensor, Tensor]:
    """Advantages and the critic's targets, `[N]` each, from `[N]` rewards and values in flat order."""
    sizes = order.lengths.tolist()
    mask = pad_sequence([torch.ones(n, dtype=torch.bool) for n in sizes], batch_first=True)
    by_row, old = (pad_sequence(list(v.split(sizes)), batch_first=True) for v in (rewards, values))
    advantages, returns = gae(by_row, old, mask, gamma=args.gamma, lam=args.gae_lambda)
    return advantages[mask], returns[mask]


def advantages_within_prompts(rewards: Tensor, order: FlatOrder, args: PPOConfig) -> Tensor:
    """Advantages `[N]` from `[N]` rewards in flat order: every token has that of its response.

    A response is one action here: its reward is the sum over its tokens, with the KL where that is in the reward.
    """
    of_rows = torch.stack([row.sum() for row in rewards.split(order.lengths.tolist())])
    of_responses = torch.empty_like(of_rows)
    of_responses[order.by_prompt] = of_rows  # as they were sampled: the responses to a prompt stand together
    by_prompt = of_responses.view(-1, args.samples_per_prompt)
    if args.advantage == "rloo":
        compared = leave_one_out(by_prompt)
    else:
        compared = group_relative(by_prompt, divide_by_std=bool(args.scale_by_group_std))
    return compared.flatten()[order.by_prompt].repeat_interleave(order.lengths)


def describe_advantages(args: PPOConfig) -> str:
    """What a response is compared with, in a sentence for the log."""
    if args.advantage == "gae":
        return "Advantages: generalised advantage estimation, with a critic."
    others = "other responses" if args.advantage == "rloo" else "responses"
    scaled = ", divided by their standard deviation" if args.scale_by_group_std else ""
    return f"Advantages ({args.advantage}, no critic): reward minus the mean of the prompt's {others}{scaled}."
