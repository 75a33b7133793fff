"""`PPOTrainer`: proximal policy optimisation with an explicit KL constraint, on `transformers.Trainer`.

At the first update of an iteration its responses are collected: sampled, rewarded, and judged once by policy, reference
and critic (`rollout_collecting`). Updates then take minibatches of that rollout (`iteration`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import ResponseCollator
from ...scoring.readings import Reading
from ..arguments import other_values
from ..kl_target_control import KLTargetControl
from ..logged_metrics import peak_memory_mib
from ..policy import load_beside
from ..precision import hold_critic
from ..sharding import placed
from .advantages import describe_advantages
from .base import OnlineTrainer
from .config import PPOConfig
from .critic import Critic, check_critic_of
from .critic_training import (
    join_optimizer,
    leave_optimizer,
    load_critic,
    load_critic_optimizer,
    only_part,
    placed_critic,
    save_critic,
    save_critic_optimizer,
)
from .iteration import Iteration, iteration_in
from .judging import Judge, rollout_statistics
from .kl_coefficients import DualCoefficient
from .objective import head_impl, loss_extras, objective
from .recording import own_responses_card, ppo_record
from .rollout_collecting import RolloutCollector
from .schedule import Place

logger = logging.getLogger(__name__)


class PPOTrainer(OnlineTrainer):
    """Train a causal language model on rewards of its own responses, held to its start by an explicit KL.

    Args:
        model: a name, a folder or a loaded causal language model. Its dropout is switched off, an adapter's is not.
        reward_funcs: a function `(prompts, completions, **columns) -> list[float]` as for TRL's GRPO (completions are
            texts), the name of a sequence-classification model with one output, or a list of these, weighted by
            `args.reward_weights`.
        args: PPOConfig.
        train_dataset: prompts: rows with `prompt` (text or messages) and columns that reach the reward functions by
            keyword, texts, lists of messages, or `Prompt`s.
        eval_dataset: the same, held out; or None.
        processing_class: the tokenizer; loaded from `model` when that is a name.
        peft_config: a peft configuration to wrap the model with.
        callbacks, optimizers: as in `transformers.Trainer`.
        ref_model: the reference; None: the policy's own start, which is the adapter switched off where that gives the
            start, and a frozen copy otherwise.
        value_model: a causal language model to be the critic's own body, by name or loaded; None: a value head on the
            policy's body. With `args.advantage` other than "gae" there is no critic.

    Raises:
        ValueError: arguments that do not fit together, prompts that do not fit the model, a reward model that does not
            fit; while training, RewardError for a reward that fails, with the last checkpoint intact.
    """

    args: PPOConfig
    collector: RolloutCollector
    METHOD, STATE_FILE = "PPO", "ppo_state_{}.pt"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: PPOConfig | None = None,
        train_dataset: Any | None = None,
        eval_dataset: Any | None = None,
        processing_class: Any | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        *,
        ref_model: Any | None = None,
        value_model: Any | None = None,
    ) -> None:
        args = PPOConfig(output_dir="ppo_output") if args is None else args
        if not isinstance(args, PPOConfig):
            raise TypeError(f"args must be a PPOConfig, got {type(args).__name__}")
        if value_model is not None and args.advantage != "gae":
            raise ValueError(
                f"value_model has no effect with advantage={args.advantage}: there is no critic; leave it out"
            )
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, peft_config, callbacks,
            optimizers, ref_model, head_impl(args),
        )  # fmt: skip
        self.critic = self._make_critic(value_model)
        self._check_fit_of_others([self._critic_body])
        self._critic_called: Any = None if self.critic is None else placed_critic(self.critic, self)
        place = partial(placed, self)
        self.statistics = rollout_statistics(self.model, self._start, self._path, self.args.device, place)
        self._judge = Judge(
            self.statistics,
            self._critic_called,
            ResponseCollator(self.tokenizer.pad_token_id),
            self.args,
            self.accelerator.autocast,
        )
        self.collector = RolloutCollector(
            self.args, self.tokenizer, self._schedule, self.train_prompts, self.rewards, self._judge,
            [self.statistics.reference_model, self._critic_body], self._completions, self._total, self.sampler,
            self._tell_drawing,
        )  # fmt: skip
        if isinstance(self.collector.kl_coefficient, DualCoefficient):
            self.add_callback(KLTargetControl(self.collector.kl_coefficient, self._total))
        self.begin_record(ppo_record(self, model, self._start, ref_model))
        logger.info("%s %s", self.describe(), self.precision.describe())

    # ---- set-up ----

    def _make_critic(self, value_model: Any | None) -> Critic | None:
        if self.args.advantage != "gae":
            return None
        body = hold_critic(load_beside(value_model, self.model, self.args), self.precision)
        return Critic.of(self.model, body).to(self.args.device)

    def describe(self) -> str:
        """Which constraint holds and which paths run, in sentences for the log."""
        kl, args = self.args.constraint, self.args
        held = f"the {kl.held_direction} KL " if kl.target_direction else ""
        controller = "fixed" if kl.controller == "fixed" else f"{held}held at {kl.target:g} nats a sequence"
        return (
            f"KL constraint: {kl.direction}, {kl.estimator} in the {kl.place}, coefficient {kl.coefficient:g}, "
            f"{controller}. {describe_advantages(args)} {self._describe_iterations()} {self.statistics.describe()}"
        )

    def create_optimizer(self, model: Any | None = None) -> Any:
        """As transformers', with a group of its own for the critic; under FSDP2 it joins when the policy is sharded."""
        optimizer = super().create_optimizer(model)
        if self._critic_beside_shards is not None:
            leave_optimizer(self._critic_beside_shards, optimizer)
        elif self.critic is not None:
            join_optimizer(self.critic, optimizer, self.args.value_learning_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any | None = None) -> Any:
        """As transformers', which calls it when accelerate has prepared the optimizer."""
        if self._critic_beside_shards is not None:
            join_optimizer(self._critic_beside_shards, self.optimizer, self.args.value_learning_rate)
        return super().create_scheduler(num_training_steps, optimizer)

    @property
    def _critic_beside_shards(self) -> Critic | None:
        """The critic if FSDP2 shards the policy; accelerate then knows nothing of it."""
        return self.critic if self.accelerator.is_fsdp2 else None

    @property
    def _critic_body(self) -> Any | None:
        return None if self.critic is None else self.critic.body

    def _has_work(self, place: Place) -> bool:
        iteration = self._under_way()
        if place.part == 0:
            if self.critic is not None:
                self.critic.zero_grad(set_to_none=True)
            iteration.begin_update(self.args.target_kl, self._total)
        return not iteration.is_stopped

    def _under_way(self) -> Iteration:
        assert self._iteration is not None
        return self._iteration

    # ---- one update ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over this micro-batch's tokens divided by the tokens of the whole update, on all processes."""
        args, iteration, place = self.args, self._under_way(), self._schedule.place(inputs["place"])
        rollout = iteration.rollout
        chosen = self._schedule.part(self.collector.units_of_update(rollout, place.update), place.part)
        batch = self._judge.batch([rollout.units[u] for u in chosen])
        tokens = rollout.order.tokens_of(chosen)
        sampled = rollout.at(tokens, args.device)
        with self.accelerator.autocast():
            path = self.statistics.path
            hidden = path.policy_output(model, batch)
            reference = self._judge.recalled(rollout.reference, tokens)
            stats = path.token_stats(hidden, reference, batch.target_ids, extras=loss_extras(args))
            values = None if self.critic is None else self._critic_called(hidden, batch)
        coefficient = self.collector.kl_coefficient
        weight = coefficient.within(iteration.coefficient) * rollout.kl_scale
        minimised = objective(args, stats, values, sampled, weight)
        coefficient.observe(stats, batch)
        log_ratio = stats.policy_logp.detach() - sampled.old_logp
        iteration.learning.add(place.part == 0, batch.num_tokens, minimised.policy, minimised.value, log_ratio)
        loss = minimised.per_token.sum() * args.world_size / max(iteration.update_tokens[place.update], 1)
        largest = {"ratio": minimised.policy.ratio} | ({} if values is None else {"value": values.abs()})
        of_loss = loss.detach(), {name: value.detach() for name, value in largest.items()}
        self._watch(loss, partial(self._non_finite, *of_loss))
        return (loss, None) if return_outputs else loss

    def _non_finite(self, loss: Tensor, largest: Mapping[str, Tensor]) -> str:
        sizes = ", ".join(f"largest {name} {float(values.max()):.3g}" for name, values in largest.items())
        return (
            f"the loss became {float(loss)} at step {self.state.global_step} ({sizes}). Lower the learning "
            "rate or set target_kl; the last checkpoint is intact."
        )

    def _readings(self) -> list[Reading]:
        return [*self._under_way().learning.readings, *self.collector.kl_coefficient.readings]

    def _clip_grad_norm(self, model: Any) -> Any:
        """The policy's and the critic's gradients, each by its own norm; the policy's is logged."""
        norm = super()._clip_grad_norm(model)
        if self.critic is not None:
            # That has taken fp16's scale off all gradients of the optimizer, which may be done once in an update.
            with other_values(self.accelerator, native_amp=False):
                self.accelerator.clip_grad_norm_(self.critic.parameters(), self.args.max_grad_norm)
        return norm

    # ---- logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check_gradient(logs)
        if "loss" in logs and self._iteration is not None:
            learned = self._iteration.learning.averages(self._total, self._largest)
            logs = {
                **logs, **self._iteration.logs, **learned, "skipped_updates": self._iteration.skipped_updates,
                "peak_memory_mib": peak_memory_mib(),
            }  # fmt: skip
        super().log(logs, start_time)

    # ---- checkpoints ----

    def model_card(self) -> str:
        """The card of the model as it is now: method, prompts, numbers, versions; Markdown."""
        return own_responses_card(self)

    def _save_own_state(self, checkpoint: Path) -> None:
        super()._save_own_state(checkpoint)
        if self.critic is not None:
            save_critic(self.critic, checkpoint, writes=self.args.should_save)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._policys_optimizer():
            super()._save_optimizer_and_scheduler(output_dir)
        if (critic := self._critic_beside_shards) is not None:
            save_critic_optimizer(critic, self.optimizer, Path(output_dir), writes=self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            check_critic_of(Path(checkpoint), self.critic)  # before the optimizer finds another number of groups
        with self._policys_optimizer():
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (critic := self._critic_beside_shards) is not None:
            load_critic_optimizer(critic, self.optimizer, Path(checkpoint))

    def _policys_optimizer(self) -> Any:
        """A context in which the optimizer is as accelerate knows it."""
        critic = self._critic_beside_shards
        return nullcontext() if critic is None else only_part(self.optimizer, critic, of_critic=False)

    def _load_own_state(self, checkpoint: str, state: dict[str, Any]) -> None:
        super()._load_own_state(checkpoint, state)
        if self.critic is not None:
            load_critic(self.critic, Path(checkpoint))

    def _iteration_in(self, state: dict[str, Any]) -> dict[str, Any] | None:
        return iteration_in(state)
