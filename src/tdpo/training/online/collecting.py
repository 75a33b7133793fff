"""How PPO gets the responses of an iteration: sampled from the policy, rewarded, and judged once by all models."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ...batches import Extent, PromptResponses
from ...environments import Prompt
from ...policy_gradient import KLCoefficient, RewardScale, moments
from ...rewards.functions import ConstancyWatch, Rewards
from ...scoring.layout import cover, grouped_collator
from .completions_file import CompletionsFile
from .config import PPOConfig
from .iteration import Iteration
from .judging import Judge, ScoredTokens
from .rollouts import (
    RewardedResponses,
    Rollout,
    Total,
    drawn_together,
    make_rollout,
    measured_kls,
    sample_responses,
    task_rewards,
    units_of,
)
from .schedule import Schedule

logger = logging.getLogger(__name__)


class Collector:
    """Begins iterations, and keeps what outlives one: the KL's coefficient, the rewards' scale, the layout of rows.

    Args:
        args: of the trainer, as are the rest.
        tokenizer: of the policy.
        schedule: says which prompts an iteration has, and which units an update.
        prompts: all that are trained on.
        rewards: the reward functions.
        judge: runs the models over responses.
        others: the models beside the policy that compute the same rows, None for one that there is not.
        file: where some responses are shown.
        total: sums a vector over processes.
    """

    def __init__(
        self,
        args: PPOConfig,
        tokenizer: Any,
        schedule: Schedule,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        judge: Judge,
        others: Sequence[Any | None],
        file: CompletionsFile,
        total: Total,
    ) -> None:
        self.args, self.tokenizer, self.schedule, self.prompts = args, tokenizer, schedule, prompts
        self.rewards, self.judge, self.others, self.file, self.total = rewards, judge, list(others), file, total
        self.kl_coefficient, self.reward_scale = KLCoefficient(args.constraint), RewardScale()
        self.constancy = ConstancyWatch()
        self.layout_is_chosen = False

    def collect(self, policy: Any, iteration: int, step: int) -> Iteration:
        """Sample, reward and judge the responses of an iteration, which begins after `step` updates of the run.

        Raises:
            RewardError: a reward function fails, or has never told responses apart.
        """
        args = self.args
        sampled = self.sample(policy, iteration)
        started = time.perf_counter()
        units = units_of(sampled, drawn_together(args))
        scored = self._judged(policy, units)
        rewards, of_rewards = task_rewards(sampled, args, self.reward_scale, self.total)
        coefficient = self.kl_coefficient.value
        rollout, of_rollout = make_rollout(
            iteration, units, scored, rewards, args.constraint, coefficient, args, self.total
        )
        update_tokens = self._tokens_of_updates(rollout)
        logs = {
            "iteration": iteration, **of_rewards, **of_rollout, "kl_coefficient": coefficient,
            "judging_seconds": time.perf_counter() - started,
        }  # fmt: skip
        if args.constraint.target is not None:
            logs["kl_target"] = args.constraint.target
        self.kl_coefficient.update(of_rollout[f"{args.constraint.direction}_kl"], args.completions)
        self.file.add(sampled, iteration, step)
        return Iteration(rollout, coefficient, logs, update_tokens)

    def judge_held_out(self, policy: Any, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Reward, both exact KLs and length of one response to each prompt, seeded, alike on every process."""
        sampled = self._sampled(policy, prompts, self.args.seed, samples=1)
        units = units_of(sampled, 1)
        cover(policy, self.judge.collator, units, other_models=self.others)
        stats = {name: value.double().cpu() for name, value in self.judge.score(policy, units).stats.items()}
        mean, std = moments(sampled.rewards)
        return {
            "reward_mean": mean, "reward_std": std, "reward_variance": std**2,
            **measured_kls(stats, len(units), lambda sums: sums),
            "length_mean": sum(len(response.token_ids) for response in sampled.responses) / len(units),
            "finished_share": sum(response.finished for response in sampled.responses) / len(units),
        }  # fmt: skip

    def sample(self, policy: Any, iteration: int) -> RewardedResponses:
        """The responses to this process's prompts of an iteration, with their rewards."""
        prompts, first = self.schedule.prompts(self.prompts, iteration)
        # A seed of its own for every iteration of every run: its responses are drawn anew.
        seed = (self.args.seed << 32) + iteration
        sampled = self._sampled(policy, prompts, seed, first=first)
        texts = [response.text for response in sampled.responses]
        if sentence := self.constancy.see(sampled.rewards.tolist(), sampled.prompts, texts):
            logger.warning("Iteration %d: %s", iteration, sentence)
        return sampled

    def _sampled(
        self, policy: Any, prompts: Sequence[Prompt], seed: int, first: int = 0, samples: int | None = None
    ) -> RewardedResponses:
        with self.judge.autocast():  # around the whole, so that weights are rounded once and not for every token
            responses, prompt_ids, seconds = sample_responses(
                policy, self.tokenizer, prompts, self.args, seed=seed, first=first, samples=samples
            )
        prompt_of_each = [prompts[response.prompt_index - first] for response in responses]
        values, parts = self.rewards(prompt_of_each, [response.text for response in responses])
        rewards = torch.tensor(values, dtype=torch.float64)
        return RewardedResponses(prompt_of_each, responses, prompt_ids, rewards, parts, seconds)

    def _judged(self, policy: Any, units: list[PromptResponses]) -> ScoredTokens:
        """Judge the units in rows as the models take them: they are asked once how responses may share rows, and again
        where these are longer than any before."""
        if not self.layout_is_chosen:
            pad_token_id = self.judge.collator.pad_token_id
            self.judge.collator = grouped_collator(policy, units, pad_token_id, other_models=self.others)
            self.layout_is_chosen = True
        cover(policy, self.judge.collator, units, other_models=self.others)
        return self.judge.score(policy, units)

    def _tokens_of_updates(self, rollout: Rollout) -> list[int]:
        """How many tokens each update of the iteration learns from, over all processes."""
        updates = range(self.args.updates_per_iteration)
        own = [len(rollout.order.tokens_of(self.units_of_update(rollout, update))) for update in updates]
        tokens: list[int] = self.total(torch.tensor(own, dtype=torch.float64)).long().tolist()
        return tokens

    def units_of_update(self, rollout: Rollout, update: int) -> list[int]:
        """Numbers of the rollout's units that an update learns from, on this process."""
        return self.schedule.units(len(rollout.units), rollout.iteration, update)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """What the next iterations need of the earlier ones."""
        collator = self.judge.collator
        trusted = collator.trusted
        return {
            "kl_coefficient": self.kl_coefficient.state_dict(),
            "reward_scale": self.reward_scale.state_dict(),
            "constancy": asdict(self.constancy),
            "layout": [collator.share_prefixes, collator.group_prompts],
            "trusted": trusted and [trusted.sequence, trusted.width],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.kl_coefficient.load_state_dict(state["kl_coefficient"])
        self.reward_scale.load_state_dict(state["reward_scale"])
        self.constancy = ConstancyWatch(**state["constancy"])
        collator, self.layout_is_chosen = self.judge.collator, True
        collator.share_prefixes, collator.group_prompts = state["layout"]
        collator.trusted = Extent(*state["trusted"]) if state.get("trusted") else None

    def restored(self, state: dict[str, Any]) -> Iteration:
        """The iteration that a checkpoint lies within, from its `Iteration.state_dict`."""
        return Iteration.from_state_dict(state, self._tokens_of_updates)
