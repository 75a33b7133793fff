"""How pairs are got from the current policy: several responses to each prompt, the best against the worst.

Where the loss is the KL to a teacher, no response is better than another, and all are taken two by two.
"""

from __future__ import annotations

from typing import Any

import torch

from ...batches import FlatOrder, TokenizedPair
from ...scoring.layout import cover
from .collecting import Collector
from .pairs_config import OnlineTDPOConfig
from .pairs_iteration import PairIteration
from .rewarded_responses import RewardedResponses, response_numbers
from .rollouts import units_of
from .server_sampling import flat_logps, mismatch_numbers


class PairCollector(Collector):
    """Makes pairs of an iteration's responses; arguments are `Collector`'s."""

    args: OnlineTDPOConfig

    def collect(self, policy: Any, iteration: int, step: int) -> PairIteration:
        args = self.args
        sampled = self.sample(policy, iteration)
        pairs = (
            two_by_two(sampled)
            if args.distils
            else best_and_worst(sampled, args.samples_per_prompt, args.min_margin, args.missing_end_penalty)
        )
        first, second = (response.token_ids for response in sampled.responses[:2])
        spare = TokenizedPair.of(sampled.prompt_ids[0], first, second)
        self.choose_layout(policy, [*pairs, spare])
        own = [len(self.schedule.units(len(pairs), iteration, n)) for n in range(args.updates_per_iteration)]
        *updates, made = self.total(torch.tensor([*own, len(pairs)], dtype=torch.float64)).long().tolist()
        logs = {
            "iteration": iteration,
            **response_numbers(sampled, args, self.total),
            **self._sampler_numbers(policy, sampled),
            "pairs": made,
            **({} if args.distils else {"prompts_without_pair": args.prompts_per_iteration - made}),
        }
        self.file.add(sampled, iteration, step)
        return PairIteration(iteration, pairs, spare, logs, updates)

    def _sampler_numbers(self, policy: Any, sampled: RewardedResponses) -> dict[str, float]:
        """What is logged of a server's probabilities beside the policy's: of the first batch of responses alone, since
        nothing else asks for the policy's here."""
        units = units_of(sampled, 1)[: 2 * self.args.per_device_train_batch_size]
        sampler_logp = flat_logps(sampled.responses, FlatOrder(units).by_prompt)
        if sampler_logp is None:
            return {}
        cover(policy, self.judge.collator, units, other_models=self.others)
        return mismatch_numbers(self.judge.score(policy, units).stats["policy_logp"], sampler_logp, self.total)

    @property
    def learns_rewards(self) -> bool:
        return not self.args.distils

    def restored(self, state: dict[str, Any]) -> PairIteration:
        return PairIteration.from_state_dict(state)


def best_and_worst(
    sampled: RewardedResponses, samples_per_prompt: int, min_margin: float, missing_end_penalty: float = 0.0
) -> list[TokenizedPair]:
    """A pair of each prompt's best and worst response, the first of equals; none where rewards differ too little.

    Args:
        sampled: responses in the order of prompts.
        samples_per_prompt: responses to each prompt.
        min_margin: rewards must differ by more than this.
        missing_end_penalty: taken off the reward of a response that was cut off.
    """
    assert sampled.rewards is not None
    rewards = (sampled.rewards - missing_end_penalty * (1.0 - sampled.finished())).view(-1, samples_per_prompt)
    pairs = []
    for number, group in enumerate(rewards.tolist()):
        best, worst = group.index(max(group)), group.index(min(group))
        if group[best] - group[worst] > min_margin:
            first = number * samples_per_prompt
            chosen, rejected = (sampled.responses[first + k].token_ids for k in (best, worst))
            pairs.append(TokenizedPair.of(sampled.prompt_ids[first], chosen, rejected))
    return pairs


def two_by_two(sampled: RewardedResponses) -> list[TokenizedPair]:
    """All responses, of which each prompt has an even number, as pairs in the order in which they were drawn."""
    ids = [response.token_ids for response in sampled.responses]
    return [TokenizedPair.of(sampled.prompt_ids[n], ids[n], ids[n + 1]) for n in range(0, len(ids), 2)]
