"""How the responses of an iteration are got: sampled from the policy and rewarded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import gather_object

from ...batches import Extent, PromptResponses
from ...environments import Prompt
from ...models import causal_lm_of
from ...rewards.functions import ConstancyWatch, Rewards
from ...sampling.engines import ResponseSampler
from ...scoring.layout import cover, grouped_collator
from ...scoring.row_forms import RowForm, row_form
from ..arguments import AUTOCAST
from .arguments import OnlineArguments
from .completions_file import CompletionsFile
from .judging import Judge
from .rewarded_responses import Drawing, RewardedResponses, Total, measured_kls, reward_moments, sample_responses
from .rollouts import units_of
from .schedule import Schedule

logger = logging.getLogger(__name__)


# What an evaluation logs; those of a reward only where there is one.
HELD_OUT_REWARDS = ("reward_mean", "reward_std", "reward_variance")
HELD_OUT_NUMBERS = (
    "reverse_kl", "forward_kl", "kl_k1", "kl_k2", "kl_k3", "policy_entropy", "length_mean", "finished_share",
)  # fmt: skip


class Collector:
    """Begins iterations, and keeps what outlives one: how responses share rows, and whether rewards ever differed.

    Args:
        args: of the trainer, as are the rest.
        tokenizer: of the policy.
        schedule: says which prompts an iteration has, and which units an update.
        prompts: all that are trained on.
        rewards: the reward functions; None where nothing is learned from a reward, and none is measured.
        judge: runs the models over responses.
        others: the models beside the policy that compute the same rows, None for one that there is not.
        file: where some responses are shown.
        total: sums a vector over processes.
        sampler: draws the responses.
        drawing: called while it does.
    """

    def __init__(
        self,
        args: OnlineArguments,
        tokenizer: Any,
        schedule: Schedule,
        prompts: Sequence[Prompt],
        rewards: Rewards | None,
        judge: Judge,
        others: Sequence[Any | None],
        file: CompletionsFile,
        total: Total,
        sampler: ResponseSampler,
        drawing: Drawing,
    ) -> None:
        self.args, self.tokenizer, self.schedule, self.prompts = args, tokenizer, schedule, prompts
        self.rewards, self.judge, self.others, self.file, self.total = rewards, judge, list(others), file, total
        self.sampler, self.drawing = sampler, drawing
        self.constancy = ConstancyWatch()
        self.layout_is_chosen = False

    def collect(self, policy: Any, iteration: int, step: int) -> Any:
        """Sample and reward the responses of an iteration, which begins after `step` updates of the run, and make of
        them what its updates learn from.

        Raises:
            RewardError: a reward function fails, or has never told responses apart.
        """
        raise NotImplementedError

    def restored(self, state: dict[str, Any]) -> Any:
        """The iteration that a checkpoint lies within, from its `state_dict`."""
        raise NotImplementedError

    def judge_held_out(self, policy: Any, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Reward, both exact KLs and length of one response to each prompt, seeded."""
        sampled = self._sampled(policy, prompts, self.args.seed, samples=1)
        units = units_of(sampled, 1)
        cover(policy, self.judge.collator, units, other_models=self.others)
        stats = {name: value.double().cpu() for name, value in self.judge.score(policy, units).stats.items()}
        return {
            **reward_moments(sampled.rewards),
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
        if self.learns_rewards:
            self._watch(sampled, iteration)
        return sampled

    @property
    def learns_rewards(self) -> bool:
        """Whether updates depend on the rewards, so that rewards which never differ are a mistake."""
        return True

    def _watch(self, sampled: RewardedResponses, iteration: int) -> None:
        """Over all processes: the share of one is small, and may be rewarded alike where the whole is not."""
        assert sampled.rewards is not None
        rewards, texts = sampled.rewards.tolist(), [response.text for response in sampled.responses]
        if self.args.world_size > 1:
            rewards, texts = gather_object(rewards), gather_object(texts)
        if sentence := self.constancy.see(rewards, sampled.prompts, texts):
            logger.warning("Iteration %d: %s", iteration, sentence)

    def _sampled(
        self, policy: Any, prompts: Sequence[Prompt], seed: int, first: int = 0, samples: int | None = None
    ) -> RewardedResponses:
        with self._autocast(policy):  # around the whole, so that weights are rounded once and not for every token
            responses, prompt_ids, seconds = sample_responses(
                policy, self.tokenizer, prompts, self.args, seed=seed, first=first, samples=samples,
                sampler=self.sampler, drawing=self.drawing,
            )  # fmt: skip
        prompt_of_each = [prompts[response.prompt_index - first] for response in responses]
        if self.rewards is None:
            return RewardedResponses(prompt_of_each, responses, prompt_ids, None, {}, seconds)
        values, parts = self.rewards(prompt_of_each, [response.text for response in responses])
        rewards = torch.tensor(values, dtype=torch.float64)
        return RewardedResponses(prompt_of_each, responses, prompt_ids, rewards, parts, seconds)

    def _autocast(self, policy: Any) -> AbstractContextManager[Any]:
        """That of the training, unless the base has the dtype of the products: then there is nothing to round where
        the adapter is folded into it."""
        dtype = str(causal_lm_of(policy).dtype).removeprefix("torch.")
        return nullcontext() if AUTOCAST.get(self.args.mixed_precision) == dtype else self.judge.autocast()

    def choose_layout(self, policy: Any, units: list[PromptResponses]) -> None:
        """Find out how responses may share rows: the models are asked once, and again where units are longer than any
        before."""
        if not self.layout_is_chosen:
            pad_token_id = self.judge.collator.pad_token_id
            self.judge.collator = grouped_collator(policy, units, pad_token_id, other_models=self.others)
            self.layout_is_chosen = True
        cover(policy, self.judge.collator, units, other_models=self.others)

    def ask_row_form(self, policy: Any) -> None:
        """Ask in which form rows that share prompts are given to the models here, after a layout was restored: the
        checkpoint may come from another machine, and does not say."""
        collator = self.judge.collator
        form = row_form(policy, self.others) if collator.share_prefixes else RowForm()
        collator.ranged, collator.costs = form.ranged, form.costs

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """What the next iterations need of the earlier ones."""
        collator = self.judge.collator
        trusted = collator.trusted
        return {
            "constancy": asdict(self.constancy),
            "layout": [collator.share_prefixes, collator.group_prompts],
            "trusted": trusted and [trusted.sequence, trusted.width],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.constancy = ConstancyWatch(**state["constancy"])
        collator, self.layout_is_chosen = self.judge.collator, True
        collator.share_prefixes, collator.group_prompts = state["layout"]
        collator.trusted = Extent(*state["trusted"]) if state.get("trusted") else None
