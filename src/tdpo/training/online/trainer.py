"""`PPOTrainer`: proximal policy optimisation with an explicit KL constraint, on `transformers.Trainer`.

One of transformers' steps is one update. The data loader yields places in the schedule instead of rows; the first
place of an iteration samples its completions, scores them, and runs policy, reference and critic over them once
(`rollouts`). Updates then take minibatches of that rollout. Logging, checkpoints, distribution and optimisers are
transformers' and accelerate's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import Extent, PromptResponses, ResponseCollator
from ...environments import Prompt
from ...models import has_adapter, load_causal_lm, reference_at_start
from ...policy_gradient import KLCoefficient, RewardScale, clipped_policy_loss, clipped_value_loss, kl_loss, moments
from ...recipe_data.inputs import prompts_inputs
from ...rewards.functions import ConstancyWatch, Rewards, digest_of, prompts_of, rewards_of
from ...sampling.sampler import check_fit, encode_prompts
from ...scoring.head_path import choose_head_path
from ...scoring.layout import cover, grouped_collator
from ...token_statistics import Extra
from ..arguments import one_process_a_device
from ..base import CheckpointedTrainer
from ..metrics import MetricsFile, peak_memory_mib
from ..policy import prepare_policy, prepare_tokenizer
from ..resume import reading
from .completions_file import CompletionsFile
from .config import PPOConfig
from .critic import Critic
from .judging import Judge, rollout_statistics
from .meter import LearningMeter
from .rollouts import (
    RewardedResponses,
    Rollout,
    drawn_together,
    make_rollout,
    measured_kls,
    sample_responses,
    task_rewards,
    units_of,
)
from .schedule import EndOfIteration, Schedule

logger = logging.getLogger(__name__)

STOP_BEYOND = 1.5  # times target_kl
CRITIC_RATE = {"head": 1e-3, "model": 1e-5}


class PPOTrainer(CheckpointedTrainer):
    """Train a causal language model on rewards of its own completions, held to its start by an explicit KL.

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
        if train_dataset is None:
            raise ValueError("train_dataset is missing: PPO needs prompts to sample from")
        one_process_a_device(args, logger.warning)
        tokenizer = prepare_tokenizer(processing_class, model, args)
        model = prepare_policy(model, peft_config, args)
        if not args.merge_adapter and not has_adapter(model):
            raise ValueError("merge_adapter=False has no effect: the model has no adapter; leave it out")
        self.train_prompts = prompts_of(train_dataset, "train_dataset")
        self.eval_prompts = None if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        to_fit: list[dict[str, list[int]]] = []
        for prompts in (self.train_prompts, self.eval_prompts or []):
            names = [f"{i} ({prompt.id})" for i, prompt in enumerate(prompts)]
            encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts], names)
            to_fit.append(dict(zip(names, encoded, strict=True)))
            check_fit(model, to_fit[-1], args.max_new_tokens)
        self.rewards: Rewards = rewards_of(
            reward_funcs, args.reward_weights, tokenizer, device=args.device, trust_remote_code=args.trust_remote_code
        )
        self.rewards.check([*self.train_prompts, *(self.eval_prompts or [])], args.max_new_tokens)
        args.num_train_epochs, args.max_steps = 1, args.total_updates
        self._schedule = Schedule(args)
        start = reference_at_start(model, _loaded(ref_model, model, args))
        path = choose_head_path(model, start, self._head_impl(args))
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
        self.critic = Critic.of(model, _loaded(value_model, model, args)).to(args.device)
        for other in (start.model, self.critic.body):
            for named in to_fit if other is not None else []:
                check_fit(other, named, args.max_new_tokens)
        self._critic_called: Any = self.accelerator.prepare_model(self.critic) if args.world_size > 1 else self.critic
        self.statistics = rollout_statistics(self.model, start, path, args.device)
        self._judge = Judge(
            self.statistics,
            self._critic_called,
            ResponseCollator(tokenizer.pad_token_id),
            args,
            self.accelerator.autocast,
        )
        self.kl_coefficient, self.reward_scale = KLCoefficient(args.constraint), RewardScale()
        self._rollout: Rollout | None = None
        self._rollout_logs: dict[str, float] = {}
        self._update_tokens: list[int] = []
        self._completions = CompletionsFile(str(args.output_dir), args.show_every, self.is_world_process_zero())
        self._constancy = ConstancyWatch()
        self._layout_is_chosen = False
        self._stopped = False
        self._skipped = 0
        self._learning = LearningMeter()
        logger.info(self.describe())

    # ---- set-up ----

    @staticmethod
    def _head_impl(args: PPOConfig) -> Any:
        """The frozen path only measures the reverse KL and the entropy; for a loss on them it is the tiled one."""
        exact_reverse = args.constraint.place == "loss" and args.constraint.estimator == "exact"
        needs_gradient = (exact_reverse and args.constraint.direction == "reverse") or args.entropy_coefficient > 0
        return "tiled" if needs_gradient else "auto"

    @property
    def _loss_extras(self) -> tuple[Extra, ...]:
        constraint = self.args.constraint
        found: list[Extra] = []
        if constraint.place == "loss" and constraint.form == "exact" and constraint.direction == "reverse":
            found.append("reverse_kl")
        if self.args.entropy_coefficient > 0:
            found.append("policy_entropy")
        return tuple(found)

    def describe(self) -> str:
        """Which constraint holds and which paths run, in sentences for the log."""
        kl, args = self.args.constraint, self.args
        held = f"held at {kl.target:g} nats a sequence" if kl.controller == "adaptive" else "fixed"
        return (
            f"KL constraint: {kl.direction}, {kl.estimator} in the {kl.place}, coefficient {kl.coefficient:g}, {held}. "
            f"{args.iterations} iterations of {args.rollout_size} completions, {args.updates_per_iteration} updates "
            f"each. {self.statistics.describe()}"
        )

    def create_optimizer(self, model: Any | None = None) -> Any:
        """As transformers', with a group of its own for the critic."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        ours = {id(p) for p in self.critic.parameters()}
        if fresh or not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
            rate = self.args.value_learning_rate or CRITIC_RATE["head" if self.critic.body is None else "model"]
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
        if self._rollout is None or self._rollout.iteration != place.iteration:
            self._begin_iteration(place.iteration)
        if place.part == 0:
            self.critic.zero_grad(set_to_none=True)
            self._stopped = self._stopped or self._has_moved_too_far()
            self._skipped += self._stopped
        if self._stopped:  # without gradients the optimizer changes nothing
            return torch.zeros((), device=self.args.device)
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._learning.seconds += time.perf_counter() - started
        return loss

    def _begin_iteration(self, iteration: int) -> None:
        """Sample, score and judge the completions of an iteration; nothing of the last one is kept."""
        args = self.args
        self._rollout, self._stopped, self._skipped = None, False, 0
        sampled = self._sample(iteration)
        started = time.perf_counter()
        units = units_of(sampled, drawn_together(args))
        self._settle_layout(units)
        scored = self._judge.score(self.model, units)
        rewards, logged = task_rewards(sampled, args, self.reward_scale, self._total)
        coefficient = self.kl_coefficient.value
        self._rollout, of_rollout = make_rollout(
            iteration, units, scored, rewards, args.constraint, coefficient, args, self._total
        )
        self._count_tokens()
        self._rollout_logs = {
            "iteration": iteration, **logged, **of_rollout, "kl_coefficient": coefficient,
            "judging_seconds": time.perf_counter() - started,
        }  # fmt: skip
        if args.constraint.target is not None:
            self._rollout_logs["kl_target"] = args.constraint.target
        self.kl_coefficient.update(of_rollout[f"{args.constraint.direction}_kl"], args.rollout_size)
        self._learning = LearningMeter()
        self._completions.add(sampled, iteration, self.state.global_step)

    def _settle_layout(self, units: list[PromptResponses]) -> None:
        """Ask the models once how completions may share rows, and again where these are longer than any before."""
        others = [self.statistics.reference_model, self.critic.body]
        if not self._layout_is_chosen:
            pad_token_id = self._judge.collator.pad_token_id
            self._judge.collator = grouped_collator(self.model, units, pad_token_id, other_models=others)
            self._layout_is_chosen = True
        cover(self.model, self._judge.collator, units, other_models=others)

    def _sample(self, iteration: int) -> RewardedResponses:
        prompts, first = self._schedule.prompts(self.train_prompts, iteration)
        # A seed of its own for every iteration of every run: its completions are drawn anew.
        seed = (self.args.seed << 32) + iteration
        sampled = self._sampled(prompts, seed, first=first)
        texts = [response.text for response in sampled.responses]
        if sentence := self._constancy.see(sampled.rewards.tolist(), sampled.prompts, texts):
            logger.warning("Iteration %d: %s", iteration, sentence)
        return sampled

    def _sampled(
        self, prompts: list[Prompt], seed: int, first: int = 0, samples: int | None = None
    ) -> RewardedResponses:
        """Responses to the prompts with their rewards."""
        responses, prompt_ids, seconds = sample_responses(
            self.model, self.processing_class, prompts, self.args, seed=seed, first=first, samples=samples
        )
        prompt_of_each = [prompts[response.prompt_index - first] for response in responses]
        rewards, parts = self.rewards(prompt_of_each, [response.text for response in responses])
        return RewardedResponses(
            prompt_of_each, responses, prompt_ids, torch.tensor(rewards, dtype=torch.float64), parts, seconds
        )

    def _total(self, sums: Tensor) -> Tensor:
        """A vector summed over processes, float64."""
        if self.args.world_size == 1:
            return sums
        reduced: Tensor = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return reduced.cpu()

    def _count_tokens(self) -> None:
        """How many tokens each update of the iteration learns from, over all processes."""
        assert self._rollout is not None
        rollout = self._rollout
        updates = range(self.args.updates_per_iteration)
        own = [len(rollout.order.tokens_of(self._units(update))) for update in updates]
        self._update_tokens = self._total(torch.tensor(own, dtype=torch.float64)).long().tolist()

    def _units(self, update: int) -> list[int]:
        assert self._rollout is not None
        return self._schedule.units(len(self._rollout.units), self._rollout.iteration, update)

    def _has_moved_too_far(self) -> bool:
        """Whether the last update found the policy further from the one that sampled than `target_kl` allows."""
        if self.args.target_kl is None or not self._learning.updates:
            return False
        moved, tokens = self._total(self._learning.last_update()).tolist()
        return bool(moved / max(tokens, 1.0) > STOP_BEYOND * self.args.target_kl)

    # ---- one update ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over this micro-batch's tokens divided by the tokens of the whole update, on all processes."""
        args, rollout, place = self.args, self._rollout, self._schedule.place(int(inputs["place"]))
        assert rollout is not None
        chosen = self._schedule.part(self._units(place.update), place.part)
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
            stats = path.token_stats(hidden, reference, batch.target_ids, extras=self._loss_extras)
            values = self._critic_called(hidden, batch)
        policy = clipped_policy_loss(stats.policy_logp, old_logp, advantages, args.clip_range)
        value = clipped_value_loss(values, old_values, returns, args.value_clip_range)
        per_token = policy.per_token + args.value_coefficient * value.per_token
        constraint = kl_loss(args.constraint, stats, old_logp)
        if constraint is not None:
            per_token = per_token + self._rollout_logs["kl_coefficient"] * rollout.kl_scale * constraint
        if stats.policy_entropy is not None:
            per_token = per_token - args.entropy_coefficient * stats.policy_entropy
        self._learning.add(place.part == 0, batch.num_tokens, policy, value, stats.policy_logp.detach() - old_logp)
        loss = per_token.sum() * args.world_size / max(self._update_tokens[place.update], 1)
        if not torch.isfinite(loss):
            raise FloatingPointError(self._non_finite(loss, policy.ratio, values))
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
        if "loss" in logs and self._rollout_logs:
            learned = self._learning.logged(self._total)
            logs = {
                **logs, **self._rollout_logs, **learned, "skipped_updates": self._skipped,
                "peak_memory_mib": peak_memory_mib(),
            }  # fmt: skip
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """0: what the loader yields are places, not tokens."""
        return 0

    def evaluate(
        self, eval_dataset: Any | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reward, both exact KLs and length of one completion for each held-out prompt, seeded, alike on every process.

        Raises:
            ValueError: there are no held-out prompts.
        """
        prompts = self.eval_prompts if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        if not prompts:
            raise ValueError("evaluate() needs prompts: pass eval_dataset here or when the trainer is made")
        if eval_dataset is not None:
            self.rewards.check(prompts, self.args.max_new_tokens)
        sampled = self._sampled(prompts, self.args.seed, samples=1)
        units = units_of(sampled, 1)
        cover(self.model, self._judge.collator, units, other_models=[self.statistics.reference_model, self.critic.body])
        stats = {name: value.double().cpu() for name, value in self._judge.score(self.model, units).stats.items()}
        mean, std = moments(sampled.rewards)
        numbers = {
            "reward_mean": mean, "reward_std": std, "reward_variance": std**2,
            **measured_kls(stats, len(units), lambda sums: sums),
            "length_mean": sum(len(response.token_ids) for response in sampled.responses) / len(units),
            "finished_share": sum(response.finished for response in sampled.responses) / len(units),
        }  # fmt: skip
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(dict(metrics))  # which adds what is no metric
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, *_: Any, **__: Any) -> Any:
        """Not here: what a policy answers is sampled and scored by `evaluate(prompts)`."""
        raise ValueError("PPO has prompts and no labels to predict: call evaluate(prompts) instead of predict(prompts)")

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any) -> Any:  # type: ignore[override]
        """As `CheckpointedTrainer.train`."""
        self._rollout, self._rollout_logs = None, {}
        if not resume_from_checkpoint:
            self._completions.forget_from(0)
        return super().train(resume_from_checkpoint, **more)

    def _own_inputs(self) -> dict[str, str]:
        return prompts_inputs(self.train_prompts, self.eval_prompts)

    def _save_own_state(self, checkpoint: Path) -> None:
        """The critic, the controller, and the rollout that is being learned from."""
        args, rollout = self.args, self._rollout
        trusted = self._judge.collator.trusted
        is_used_up = self.state.global_step % args.updates_per_iteration == 0
        state = {
            "rollout": None if rollout is None or is_used_up else rollout.state_dict(),
            "logs": self._rollout_logs,
            "stopped": self._stopped,
            "skipped": self._skipped,
            "learning": self._learning.state_dict(),
            "kl_coefficient": self.kl_coefficient.state_dict(),
            "reward_scale": self.reward_scale.state_dict(),
            "constancy": asdict(self._constancy),
            "layout": [self._judge.collator.share_prefixes, self._judge.collator.group_prompts],
            "trusted": trusted and [trusted.sequence, trusted.width],
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
        self.kl_coefficient.load_state_dict(state["kl_coefficient"])
        self.reward_scale.load_state_dict(state["reward_scale"])
        self._constancy = ConstancyWatch(**state["constancy"])
        collator, self._layout_is_chosen = self._judge.collator, True
        collator.share_prefixes, collator.group_prompts = state["layout"]
        collator.trusted = Extent(*state["trusted"]) if state.get("trusted") else None
        self._rollout = Rollout.from_state_dict(state["rollout"]) if state["rollout"] else None
        self._rollout_logs, self._stopped, self._skipped = state["logs"], state["stopped"], state["skipped"]
        self._learning.load_state_dict(state["learning"])
        if self._rollout is not None:
            self._count_tokens()
        begun = 0 if self._rollout is None else 1
        self._completions.forget_from(self.state.global_step // self.args.updates_per_iteration + begun)


def _loaded(model: Any, policy: Any, args: PPOConfig) -> Any:
    """A model given by name, in the policy's precision; anything else as it is."""
    if not isinstance(model, str | Path):
        return model
    dtype = str(policy.dtype).removeprefix("torch.")
    return load_causal_lm(model, dtype=dtype, trust_remote_code=args.trust_remote_code)
