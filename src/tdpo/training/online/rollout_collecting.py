"""How PPO gets a rollout: responses with their rewards, judged once by policy, reference and critic."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ...batches import FlatOrder, PromptResponses
from ...policy_gradient import RewardScale, truncated_importance_weights
from .collecting import Collector
from .config import PPOConfig
from .iteration import Iteration
from .judging import ScoredTokens
from .kl_coefficients import coefficient_of
from .rewarded_responses import RewardedResponses
from .rollouts import Rollout, drawn_together, make_rollout, task_rewards, units_of
from .server_sampling import flat_logps, mismatch_numbers


class RolloutCollector(Collector):
    """Makes rollouts, and keeps the KL's coefficient and the rewards' scale besides; arguments are `Collector`'s."""

    args: PPOConfig

    def __init__(self, args: PPOConfig, *rest: Any) -> None:
        super().__init__(args, *rest)
        self.kl_coefficient, self.reward_scale = coefficient_of(args.constraint), RewardScale()

    def collect(self, policy: Any, iteration: int, step: int) -> Iteration:
        """Sample, reward and judge the responses of an iteration, which begins after `step` updates of the run.

        Raises:
            RewardError: a reward function fails, or has never told responses apart.
        """
        args = self.args
        sampled = self.sample(policy, iteration)
        started = time.perf_counter()
        units = units_of(sampled, drawn_together(args))
        self.choose_layout(policy, units)
        scored = self.judge.score(policy, units)
        rewards, of_rewards = task_rewards(sampled, args, self.reward_scale, self.total)
        coefficient = self.kl_coefficient.value
        weights, of_sampler = self._beside_the_sampler(sampled, units, scored)
        rollout, of_rollout = make_rollout(
            iteration, units, scored, rewards, args.constraint, coefficient, args, self.total, weights
        )
        update_tokens = self._tokens_of_updates(rollout)
        logs = {
            "iteration": iteration, **of_rewards, **of_sampler, **of_rollout, "kl_coefficient": coefficient,
            "judging_seconds": time.perf_counter() - started,
        }  # fmt: skip
        if args.constraint.target is not None:
            logs["kl_target"] = args.constraint.target
        self.kl_coefficient.update(of_rollout[f"{args.constraint.held_direction}_kl"], args.completions)
        self.file.add(sampled, iteration, step)
        return Iteration(rollout, coefficient, logs, update_tokens)

    def _beside_the_sampler(
        self, sampled: RewardedResponses, units: list[PromptResponses], scored: ScoredTokens
    ) -> tuple[Tensor | None, dict[str, float]]:
        """The importance weights `[N]` of the rollout's tokens, where they get some, and what is logged of a server's
        probabilities beside the policy's."""
        logp, cap = scored.stats["policy_logp"], self.args.importance_weight_cap
        sampler_logp = flat_logps(sampled.responses, FlatOrder(units).by_prompt)
        if sampler_logp is None:
            return None, {}
        numbers = mismatch_numbers(logp, sampler_logp, self.total)
        if cap is None:
            return None, numbers
        weights = truncated_importance_weights(logp.double().cpu(), sampler_logp, cap)
        truncated = self.total(
            torch.stack([(weights >= cap).double().sum(), weights.new_tensor(len(weights))])
        ).tolist()
        return weights.float(), {**numbers, "truncated_share": truncated[0] / truncated[1]}

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
        return {
            "kl_coefficient": self.kl_coefficient.state_dict(),
            "reward_scale": self.reward_scale.state_dict(),
            **super().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.kl_coefficient.load_state_dict(state["kl_coefficient"])
        self.reward_scale.load_state_dict(state["reward_scale"])

    def restored(self, state: dict[str, Any]) -> Iteration:
        return Iteration.from_state_dict(state, self._tokens_of_updates)
