"""`OnlineTDPOTrainer`: a loss of pairs on pairs of the current policy's own responses, ranked by a reward.

Online DPO (Guo et al. 2024, arXiv 2402.04792) with every loss of pairs: the policy is sampled again in each iteration,
and the reference stays the start, or follows the policy (`moving_reference`). Prompts, rewards, sampling and schedule
are those of `PPOTrainer`, so that both spend a budget of scored responses alike. With the loss "kl" it is on-policy
distillation (Agarwal et al. 2023, arXiv 2306.13649): the KL to a teacher along the policy's own responses, without a
reward.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import ResponseCollator
from ...config import KLS_OF_TRAINING
from ...config.training_defaults import PAIRS
from ...models import kept_reference
from ...rewards.functions import Rewards
from ...scores import score_pairs
from ...scoring.configured_loss import configured_loss
from ...scoring.pair_metrics import pair_metrics
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.readings import Reading
from ...scoring.reference_source import LiveReference
from ..kl_target_control import KLTargetControl
from ..logged_metrics import peak_memory_mib
from ..sharding import placed
from .base import OnlineTrainer
from .judging import Judge
from .moving_reference import MovingReference, check_reference_of
from .pairs_collecting import PairCollector
from .pairs_config import OnlineTDPOConfig
from .pairs_iteration import PairIteration, without_ranks
from .recording import online_pairs_record, own_responses_card
from .schedule import Place

logger = logging.getLogger(__name__)


class OnlineTDPOTrainer(OnlineTrainer):
    """Train a causal language model on preferences between its own responses, with an exact KL to its start.

    Args:
        model: a name, a folder or a loaded causal language model. Its dropout is switched off, an adapter's is not.
        reward_funcs: as for `PPOTrainer`: a function `(prompts, completions, **columns) -> list[float]`, the name of a
            reward model, or a list of these, weighted by `args.reward_weights`. With the loss "kl" it may be None; a
            reward is then logged, and not learned from.
        args: OnlineTDPOConfig.
        train_dataset: prompts, as for `PPOTrainer`.
        eval_dataset: the same, held out; or None.
        processing_class: the tokenizer; loaded from `model` when that is a name.
        peft_config: a peft configuration to wrap the model with.
        callbacks, optimizers: as in `transformers.Trainer`.
        ref_model: the reference; None: the policy's own start, which is the adapter switched off where that gives the
            start, and a frozen copy otherwise (always a copy where it moves, `args.reference_update`). The loss "kl"
            needs one, as its teacher.

    Raises:
        ValueError: arguments that do not fit together, prompts that do not fit the model, a reward model that does not
            fit; while training, RewardError for a reward that fails, with the last checkpoint intact.
    """

    args: OnlineTDPOConfig
    collector: PairCollector
    LEARNING_RATE_OF = PAIRS
    METHOD, STATE_FILE = "online preference learning", "online_state_{}.pt"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: OnlineTDPOConfig | None = None,
        train_dataset: Any | None = None,
        eval_dataset: Any | None = None,
        processing_class: Any | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        *,
        ref_model: Any | None = None,
    ) -> None:
        args = OnlineTDPOConfig(output_dir="online_tdpo_output") if args is None else args
        if not isinstance(args, OnlineTDPOConfig):
            raise TypeError(f"args must be an OnlineTDPOConfig, got {type(args).__name__}")
        args.check_teacher(ref_model)
        args.check_reference(ref_model)
        loss = configured_loss(args.loss, args.beta, args.alpha, args.label_smoothing, args.kl_term, args.gamma)
        self.preference_loss = loss
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, peft_config, callbacks,
            optimizers, ref_model, "auto", loss.extras,
        )  # fmt: skip
        self._check_fit_of_others([])
        update = self.args.moving_reference
        reference = placed(self, kept_reference(self.model, self._start, moves=update is not None))
        self._moving = None if update is None else MovingReference(self.model, reference, update)
        self.statistics = PolicyStatistics(self._path, LiveReference(reference, self._path))
        self._judge = Judge(
            self.statistics, None, ResponseCollator(self.tokenizer.pad_token_id), self.args, self.accelerator.autocast
        )
        self.collector = PairCollector(
            self.args, self.tokenizer, self._schedule, self.train_prompts, self.rewards, self._judge,
            [self.statistics.reference_model], self._completions, self._total, self.sampler,
            self._tell_drawing,
        )  # fmt: skip
        if loss.controller is not None:
            self.add_callback(KLTargetControl(loss, self._total))
        self.begin_record(online_pairs_record(self, model, self._start, ref_model))
        logger.info("%s %s", self.describe(), self.precision.describe())

    def describe(self) -> str:
        """What is learned from and which paths run, in sentences for the log."""
        args = self.args
        return (
            f"Loss {args.loss} on {'all' if args.distils else 'the best against the worst'} of "
            f"{args.samples_per_prompt} responses to a prompt. {self._describe_iterations()} "
            f"{self.statistics.describe()}{self._describe_moving()}{self.preference_loss.describe(self._path.name)}"
        )

    def _describe_moving(self) -> str:
        return "" if self._moving is None else f" It moves: {self._moving.update.in_words()}. {KLS_OF_TRAINING}."

    def _rewards_of(self, reward_funcs: Any, args: Any, tokenizer: Any) -> Rewards | None:
        if reward_funcs is not None or not args.distils:
            return super()._rewards_of(reward_funcs, args, tokenizer)
        if args.reward_weights is not None:
            raise ValueError("reward_weights has no effect without reward_funcs; leave it out")
        return None

    def model_card(self) -> str:
        """The card of the model as it is now: method, prompts, numbers, versions; Markdown."""
        return own_responses_card(self)

    # ---- one update ----

    def _begin_iteration(self, number: int) -> None:
        if self._moving is not None:
            self._moving.before(number)
        super()._begin_iteration(number)

    def _has_work(self, place: Place) -> bool:
        """Whether any process has a pair in this update. One without takes part all the same, with its spare pair."""
        return self._under_way().update_pairs[place.update] > 0

    def _under_way(self) -> PairIteration:
        assert self._iteration is not None
        iteration: PairIteration = self._iteration
        return iteration

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over this micro-batch's pairs divided by the pairs of the whole update, on all processes."""
        args, iteration, place = self.args, self._under_way(), self._schedule.place(inputs["place"])
        of_update = self._schedule.units(len(iteration.pairs), iteration.number, place.update)
        pairs = [iteration.pairs[n] for n in self._schedule.part(of_update, place.part)]
        batch = self._judge.batch(pairs or [iteration.spare])
        with self.accelerator.autocast():
            wanted = self.preference_loss
            stats = self.statistics(model, batch, extras=wanted.extras, learned_tokens=wanted.learned_tokens(batch))
        scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
        loss = self.preference_loss(stats, scores, batch.sequence_index, batch.num_prompts)
        if not pairs:  # the gradient that other processes wait for
            return 0.0 * loss.per_pair.sum()
        self.preference_loss.observe(loss, stats, batch.sequence_index, batch.num_prompts)
        of_pairs = self.preference_loss.of_pairs
        table = pair_metrics(stats, scores, loss, batch.sequence_index, batch.num_prompts, of_pairs)
        iteration.learning.add(table, batch.num_tokens)
        total: Tensor = loss.per_pair.sum() * args.world_size / iteration.update_pairs[place.update]
        self._watch(total, partial(self._non_finite, total.detach()))
        return (total, None) if return_outputs else total

    def _non_finite(self, loss: Tensor) -> str:
        return (
            f"the loss became {float(loss)} at step {self.state.global_step}. Lower the learning rate; the last "
            "checkpoint is intact."
        )

    def _readings(self) -> list[Reading]:
        return [self._under_way().learning.sums, *self.preference_loss.readings]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check_gradient(logs)
        if "loss" in logs and self._iteration is not None:
            iteration = self._under_way()
            learned = self.preference_loss.logged(iteration.learning.averages(self._total))
            if self.args.distils:
                learned = without_ranks(learned)
            learned |= self.preference_loss.aim
            if self._moving is not None:
                learned["reference_updates"] = self._moving.moves_until(iteration.number)
            logs = {**logs, **iteration.logs, **learned, "peak_memory_mib": peak_memory_mib()}
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _state_of_learning(self) -> dict[str, Any]:
        return {"loss": self.preference_loss.state_dict()}

    def _save_own_state(self, checkpoint: Path) -> None:
        super()._save_own_state(checkpoint)
        if self._moving is not None:
            self._moving.save(checkpoint, writes=self.args.should_save)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if self._moving is not None and best is not None:
            self._moving.load(Path(best))  # that which its numbers were measured against

    def _load_own_state(self, checkpoint: str, state: dict[str, Any]) -> None:
        check_reference_of(Path(checkpoint), self._moving)
        super()._load_own_state(checkpoint, state)
        if self._moving is not None:
            self._moving.load(Path(checkpoint))
        self.preference_loss.load_state_dict(state.get("loss", {}))  # earlier versions changed nothing of it
