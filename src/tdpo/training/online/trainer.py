"""`PPOTrainer`: proximal policy optimisation with an explicit KL constraint, on `transformers.Trainer`.

One of transformers' steps is one update. The data loader yields places in the schedule instead of rows; at the first
place of an iteration its responses are collected: sampled, rewarded, and judged once by policy, reference and critic
(`collecting`). Updates then take minibatches of that rollout (`iteration`). Logging, checkpoints, distribution and
optimisers are transformers' and accelerate's.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import ResponseCollator
from ...config.training_defaults import PPO
from ...models import has_adapter, reference_at_start
from ...recipe_data.input_digests import prompts_inputs
from ...rewards.functions import Rewards, digest_of, prompts_of, rewards_of
from ...scoring.head_path import choose_head_path
from ..arguments import one_process_a_device
from ..checkpointed_trainer import CheckpointedTrainer
from ..logged_metrics import MetricsFile, peak_memory_mib
from ..policy import load_beside, prepare_policy, prepare_tokenizer, settled
from ..precision import hold_critic
from ..resumption import reading
from .collecting import Collector
from .completions_file import CompletionsFile
from .config import PPOConfig
from .critic import Critic
from .iteration import Iteration, iteration_in
from .judging import Judge, rollout_statistics
from .objective import head_impl, loss_extras, objective
from .prompt_lengths import check_all_fit, encoded_by_name
from .schedule import EndOfIteration, Schedule

logger = logging.getLogger(__name__)


class PPOTrainer(CheckpointedTrainer):
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
            policy's body.

    Raises:
        ValueError: arguments that do not fit together, prompts that do not fit the model, a reward model that does not
            fit; while training, RewardError for a reward that fails, with the last checkpoint intact.
    """

    args: PPOConfig

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
        args = copy.copy(args)  # what follows from the model is written into it below, and the caller's stays as it is
        if train_dataset is None:
            raise ValueError("train_dataset is missing: PPO needs prompts to sample from")
        one_process_a_device(args, logger.warning)
        tokenizer = prepare_tokenizer(processing_class, model, args)
        model, self.precision, reference = settled(prepare_policy(model, peft_config, args), ref_model, args, PPO)
        if not args.merge_adapter and not has_adapter(model):
            raise ValueError("merge_adapter=False has no effect: the model has no adapter; leave it out")
        self.train_prompts = prompts_of(train_dataset, "train_dataset")
        self.eval_prompts = None if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        encoded = [encoded_by_name(tokenizer, prompts) for prompts in (self.train_prompts, self.eval_prompts or [])]
        check_all_fit([model], encoded, args.max_new_tokens)
        self.rewards: Rewards = rewards_of(
            reward_funcs, args.reward_weights, tokenizer, device=args.device, trust_remote_code=args.trust_remote_code
        )
        self.rewards.check([*self.train_prompts, *(self.eval_prompts or [])], args.max_new_tokens)
        args.num_train_epochs, args.max_steps = 1, args.total_updates
        self._schedule = Schedule(args)
        start = reference_at_start(model, reference)
        path = choose_head_path(model, start, head_impl(args))
        if path.name == "logits":
            raise ValueError(f"PPO reads values and statistics off hidden states, but {path.why}")
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._schedule,  # its length is all that transformers asks of it
            eval_dataset=self.eval_prompts,
            processing_class=tokenizer,
            callbacks=[
                *(callbacks or []),
                EndOfIteration(args.updates_per_iteration),
                MetricsFile(str(args.output_dir)),
            ],
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole update itself
        body = hold_critic(load_beside(value_model, model, args), self.precision)
        self.critic = Critic.of(model, body).to(args.device)
        check_all_fit([start.model, self.critic.body], encoded, args.max_new_tokens)
        self._critic_called: Any = self.accelerator.prepare_model(self.critic) if args.world_size > 1 else self.critic
        self.statistics = rollout_statistics(self.model, start, path, args.device)
        self._judge = Judge(
            self.statistics, self._critic_called, ResponseCollator(tokenizer.pad_token_id), args,
            self.accelerator.autocast,
        )  # fmt: skip
        self._completions = CompletionsFile(str(args.output_dir), args.show_every, self.is_world_process_zero())
        self.collector = Collector(
            args, tokenizer, self._schedule, self.train_prompts, self.rewards, self._judge,
            [self.statistics.reference_model, self.critic.body], self._completions, self._total,
        )  # fmt: skip
        self._iteration: Iteration | None = None
        logger.info("%s %s", self.describe(), self.precision.describe())

    # ---- set-up ----

    def describe(self) -> str:
        """Which constraint holds and which paths run, in sentences for the log."""
        kl, args = self.args.constraint, self.args
        controller = f"held at {kl.target:g} nats a sequence" if kl.controller == "adaptive" else "fixed"
        return (
            f"KL constraint: {kl.direction}, {kl.estimator} in the {kl.place}, coefficient {kl.coefficient:g}, "
            f"{controller}. {args.iterations} iterations of {args.completions} completions, "
            f"{args.updates_per_iteration} updates each. {self.statistics.describe()}"
        )

    def create_optimizer(self, model: Any | None = None) -> Any:
        """As transformers', with a group of its own for the critic."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh or not self.critic.is_trained_by(optimizer):
            rate = self.args.value_learning_rate or self.critic.default_learning_rate
            trained = [p for p in self.critic.parameters() if p.requires_grad]
            optimizer.add_param_group({"params": trained, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def get_train_dataloader(self) -> Any:
        """Places in the schedule, one a micro-batch, dealt out to the processes in turn."""
        return self.accelerator.prepare(self._schedule.loader())

    # ---- one iteration ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch; the first of an iteration samples it, the first of an update may find it stopped."""
        place = self._schedule.place(int(inputs["place"]))
        if self._iteration is None or self._iteration.rollout.iteration != place.iteration:
            self._begin_iteration(place.iteration)
        iteration = self._under_way()
        if place.part == 0:
            self.critic.zero_grad(set_to_none=True)
            iteration.begin_update(self.args.target_kl, self._total)
        if iteration.is_stopped:  # without gradients the optimizer changes nothing
            return torch.zeros((), device=self.args.device)
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        iteration.learning.seconds += time.perf_counter() - started
        return loss

    def _under_way(self) -> Iteration:
        assert self._iteration is not None
        return self._iteration

    def _begin_iteration(self, number: int) -> None:
        self._iteration = None  # nothing of the last one is kept in memory while the next is collected
        self._iteration = self.collector.collect(self.model, number, self.state.global_step)

    def _total(self, sums: Tensor) -> Tensor:
        """A vector summed over processes, float64."""
        if self.args.world_size == 1:
            return sums
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return reduced.cpu()

    # ---- one update ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over this micro-batch's tokens divided by the tokens of the whole update, on all processes."""
        args, iteration, place = self.args, self._under_way(), self._schedule.place(int(inputs["place"]))
        rollout = iteration.rollout
        chosen = self._schedule.part(self.collector.units_of_update(rollout, place.update), place.part)
        batch = self._judge.batch([rollout.units[u] for u in chosen])
        tokens = rollout.order.tokens_of(chosen)
        old_logp, old_values, advantages, returns = (
            value[tokens.to(value.device)].to(args.device)
            for value in (rollout.old_logp, rollout.old_values, rollout.advantages, rollout.returns)
        )
        with self.accelerator.autocast():
            path = self.statistics.path
            hidden = path.policy_output(model, batch)
            reference = self._judge.recalled(rollout.reference, tokens)
            stats = path.token_stats(hidden, reference, batch.target_ids, extras=loss_extras(args))
            values = self._critic_called(hidden, batch)
        minimised = objective(
            args, stats, values, old_logp=old_logp, old_values=old_values, advantages=advantages, returns=returns,
            kl_weight=iteration.coefficient * rollout.kl_scale,
        )  # fmt: skip
        log_ratio = stats.policy_logp.detach() - old_logp
        iteration.learning.add(place.part == 0, batch.num_tokens, minimised.policy, minimised.value, log_ratio)
        loss = minimised.per_token.sum() * args.world_size / max(iteration.update_tokens[place.update], 1)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._non_finite(loss, minimised.policy.ratio, values))
        return (loss, None) if return_outputs else loss

    def _non_finite(self, loss: Tensor, ratio: Tensor, values: Tensor) -> str:
        return (
            f"the loss became {float(loss.detach())} at step {self.state.global_step} (largest ratio "
            f"{float(ratio.max()):.3g}, largest value {float(values.detach().abs().max()):.3g}). Lower the learning "
            "rate or set target_kl; the last checkpoint is intact."
        )

    def _clip_grad_norm(self, model: Any) -> Any:
        """The policy's and the critic's gradients, each by its own norm; the policy's is logged."""
        self.accelerator.clip_grad_norm_(self.critic.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    # ---- logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check_gradient(logs)
        if "loss" in logs and self._iteration is not None:
            learned = self._iteration.learning.averages(self._total)
            logs = {
                **logs, **self._iteration.logs, **learned, "skipped_updates": self._iteration.skipped_updates,
                "peak_memory_mib": peak_memory_mib(),
            }  # fmt: skip
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: what the loader yields are places, not tokens."""
        return 0

    def evaluate(
        self, eval_dataset: Any | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reward, both exact KLs and length of one response to each held-out prompt, seeded, alike on every process.

        Raises:
            ValueError: there are no held-out prompts.
        """
        prompts = self.eval_prompts if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        if not prompts:
            raise ValueError("evaluate() needs prompts: pass eval_dataset here or when the trainer is made")
        if eval_dataset is not None:
            self.rewards.check(prompts, self.args.max_new_tokens)
        numbers = self.collector.judge_held_out(self.model, prompts)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(dict(metrics))  # which adds what is no metric
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, *_: Any, **__: Any) -> Any:
        """Raises ValueError: responses to other prompts are sampled and scored by `evaluate(prompts)`."""
        raise ValueError("PPO has prompts and no labels to predict: call evaluate(prompts) instead of predict(prompts)")

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any) -> Any:  # type: ignore[override]
        """As `CheckpointedTrainer.train`."""
        self._iteration = None
        if not resume_from_checkpoint:
            self._completions.forget_from(0)
        return super().train(resume_from_checkpoint, **more)

    def _own_inputs(self) -> dict[str, str]:
        return prompts_inputs(self.train_prompts, self.eval_prompts)

    def _save_own_state(self, checkpoint: Path) -> None:
        """The critic, what outlives an iteration, and the iteration that the checkpoint lies within."""
        args, iteration = self.args, self._iteration
        is_used_up = self.state.global_step % args.updates_per_iteration == 0
        state = {
            "iteration": None if iteration is None or is_used_up else iteration.state_dict(),
            **self.collector.state_dict(),
            "prompts": digest_of(self.train_prompts),
        }
        torch.save(state, checkpoint / f"ppo_state_{args.process_index}.pt")
        if args.should_save:
            torch.save(self.critic.state_dict(), checkpoint / "critic.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / f"ppo_state_{self.args.process_index}.pt"
        if not path.exists():
            raise ValueError(f"{checkpoint} holds no {path.name}: it was not written by PPO on as many processes")
        with reading(checkpoint, path.name):
            self._load_own_state(checkpoint, torch.load(path, weights_only=True, map_location="cpu"))

    def _load_own_state(self, checkpoint: str, state: dict[str, Any]) -> None:
        if state["prompts"] != digest_of(self.train_prompts) and not self.accept_changes:
            raise ValueError(
                f"{checkpoint} was written by a run on other prompts than these, or on these in another order: it "
                "would go on as another run. Put the prompts back, or start anew."
            )
        with reading(checkpoint, "critic.pt"):
            critic = torch.load(Path(checkpoint) / "critic.pt", weights_only=True, map_location="cpu")
            self.critic.load_state_dict(critic)
        self.collector.load_state_dict(state)
        under_way = iteration_in(state)
        if under_way is not None:
            self._iteration = self.collector.restored(under_way)
        begun = 0 if under_way is None else 1
        self._completions.forget_from(self.state.global_step // self.args.updates_per_iteration + begun)
