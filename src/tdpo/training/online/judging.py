"""What policy, reference and critic say of sampled responses: asked once an iteration, kept while the policy learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...batches import FlatOrder, PromptResponses, ResponseBatch, ResponseCollator, moved
from ...models import Reference, kept_reference
from ...scoring.head_path import HeadPath, ReferencePart
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.reference_source import LiveReference, copied_head
from ...token_statistics import Extra
from .arguments import OnlineArguments
from .critic import Critic

EXTRAS: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")


@dataclass(frozen=True)
class ScoredTokens:
    """What both models and the critic say of the N response tokens of a batch, in its order.

    Args:
        stats: the fields of `TokenStats` that were computed, `[N]` each.
        values: the critic's, `[N]`; None without a critic.
        reference: what the reference says, as in `ReferencePart.values`.
    """

    stats: dict[str, Tensor]
    values: Tensor | None
    reference: dict[str, Tensor]


def rollout_statistics(
    policy: Any, start: Reference, path: HeadPath, device: torch.device, place: Callable[[Reference], Reference]
) -> PolicyStatistics:
    """The statistics of PPO, whose reference runs once over each rollout and stays what it is while the policy learns.

    Args:
        policy: the model that is about to be trained.
        start: its reference, as `reference_at_start` gives it.
        path: the head path; not the one of full logits.
        device: where the policy runs.
        place: brings a reference with a model of its own to where the policy is computed.
    """
    head = None if path.name == "frozen" else copied_head(start, device)
    return PolicyStatistics(path, LiveReference(place(kept_reference(policy, start)), path, head))


class Judge:
    """Runs policy, reference and critic once over sampled responses."""

    def __init__(
        self,
        statistics: PolicyStatistics,
        critic: Critic | None,
        collator: ResponseCollator,
        args: OnlineArguments,
        autocast: Callable[[], Any],
    ) -> None:
        self.statistics, self.critic, self.collator = statistics, critic, collator
        self.args, self.autocast = args, autocast

    @torch.no_grad()
    def score(self, policy: Any, units: Sequence[PromptResponses]) -> ScoredTokens:
        """Both models and the critic on all units, in micro-batches without a gradient, policy in evaluation mode.

        Batches are twice as large as in training. The result has the order of one batch of all units.
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
        places = torch.cat([order.tokens_of(numbers) for numbers in batches])
        return _joined(parts, places.argsort())  # row i of the parts belongs to places[i]

    def _score_batch(self, policy: Any, units: list[PromptResponses]) -> ScoredTokens:
        batch = self.batch(units)
        with self.autocast():
            path = self.statistics.path
            reference = self.statistics.source.part(policy, batch)
            hidden = path.policy_output(policy, batch)
            stats = path.token_stats(hidden, reference, batch.target_ids, extras=EXTRAS)
            values = None if self.critic is None else self.critic(hidden, batch)
        # Of a summary, only measuring the reverse KL needs "hidden", and that is done.
        needed = {k: v for k, v in reference.values.items() if k != "hidden" or path.name != "frozen"}
        return ScoredTokens({k: v for k, v in vars(stats).items() if v is not None}, values, needed)

    def recalled(self, reference: Mapping[str, Tensor], tokens: Tensor) -> ReferencePart:
        """What the reference said of these tokens of a rollout, flat indices `[N]`, without running it again.

        A rollout of a checkpoint lies on the host, and the policy perhaps not.
        """
        values = {
            name: moved(value[moved(tokens, value.device)], self.args.device) for name, value in reference.items()
        }
        return ReferencePart(values, self.statistics.source.head)

    def batch(self, units: Sequence[PromptResponses]) -> ResponseBatch:
        """One batch of these units on the policy's device."""
        return ResponseBatch.from_inputs(self.collator(units), self.args.device)


def _joined(parts: Sequence[ScoredTokens], order: Tensor) -> ScoredTokens:
    """The rows of all parts, one part after the other, put into the order `order` `[N]`."""

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(tensors))
        return whole[order.to(whole.device)]

    return ScoredTokens(
        {name: rows([part.stats[name] for part in parts]) for name in parts[0].stats},
        None if parts[0].values is None else rows([part.values for part in parts if part.values is not None]),
        {name: rows([part.reference[name] for part in parts]) for name in parts[0].reference},
    )
