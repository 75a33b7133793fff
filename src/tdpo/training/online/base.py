"""What trainers share that learn from a model's own responses: prompts, rewards, the schedule, and iterations.

One of transformers' steps is one update. The data loader yields places in the schedule instead of rows; at the first
place of an iteration its responses are collected: sampled and rewarded (`collecting`). Updates then take minibatches of
them. Logging, checkpoints, distribution and optimisers are transformers' and accelerate's.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import TrainerCallback

from ...config import why_not_handed_over
from ...config.training_defaults import PPO
from ...environments import Prompt, seen_prompts
from ...models import has_adapter, reference_at_start, whole_weights
from ...models.precision import Precision
from ...recipe_data.input_digests import prompts_inputs
from ...records.metric_names import counted
from ...rewards.functions import Rewards, digest_of, prompts_of, rewards_of
from ...sampling.engines import ResponseSampler
from ...sampling.sampler import SamplingSettings
from ...scoring.head_path import choose_head_path
from ...scoring.options import HeadImpl
from ...token_statistics import Extra
from ..arguments import one_process_a_device
from ..best_model import check_metric
from ..callbacks import DrawingCallback
from ..checkpointed_trainer import CheckpointedTrainer
from ..logged_metrics import MetricsFile
from ..loss_scaling import allow_updates_without_gradient
from ..policy import prepare_policy, prepare_tokenizer, settled
from ..resumption import reading
from ..sharding import check_sharding
from .arguments import OnlineArguments
from .collecting import HELD_OUT_NUMBERS, HELD_OUT_REWARDS, Collector
from .completions_file import CompletionsFile
from .prompt_lengths import check_all_fit, encoded_by_name
from .recording import described_prompts
from .schedule import EndOfIteration, Place, Schedule
from .server_sampling import sampler_of

logger = logging.getLogger(__name__)


class OnlineTrainer(CheckpointedTrainer):
    """The base of `PPOTrainer` and `OnlineTDPOTrainer`; arguments are described there.

    A subclass makes a `collector` after the constructor of this class, and has the class attributes below.
    """

    args: OnlineArguments
    precision: Precision
    collector: Collector
    METHOD = ""  # its name in messages
    LEARNING_RATE_OF = PPO  # whose default it has where none was chosen
    STATE_FILE = ""  # of a process in a checkpoint, with a place for its number

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: OnlineArguments,
        train_dataset: Any | None,
        eval_dataset: Any | None,
        processing_class: Any | None,
        peft_config: Any | None,
        callbacks: list[TrainerCallback] | None,
        optimizers: tuple[Any, Any],
        ref_model: Any | None,
        head_impl: HeadImpl,
        extras: Sequence[Extra] = (),
    ) -> None:
        args = copy.copy(args)  # the length of the run is written into it below, and the caller's stays as it is
        if train_dataset is None:
            raise ValueError(f"train_dataset is missing: {self.METHOD} needs prompts to sample from")
        one_process_a_device(args, logger.warning)
        check_sharding(args)
        tokenizer = prepare_tokenizer(processing_class, model, args)
        policy = prepare_policy(model, peft_config, args)
        model, self.precision, reference = settled(policy, ref_model, args, self.LEARNING_RATE_OF)
        if not args.merge_adapter and not has_adapter(model):
            raise ValueError("merge_adapter=False has no effect: the model has no adapter; leave it out")
        self.train_prompts = prompts_of(train_dataset, "train_dataset")
        self.eval_prompts = None if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        self.tokenizer = tokenizer
        if seen := seen_prompts(self.train_prompts, self.eval_prompts or ()):
            logger.warning("%s", seen)
        counts = {"train": len(self.train_prompts), "eval": len(self.eval_prompts or ())}
        self._described = described_prompts(train_dataset, eval_dataset, counts)
        self._encoded = [encoded_by_name(tokenizer, each) for each in (self.train_prompts, self.eval_prompts or [])]
        check_all_fit([model], self._encoded, args.max_new_tokens)
        self.rewards = self._rewards_of(reward_funcs, args, tokenizer)
        check_metric(args, self.evaluation_names())
        self._check_rewards([*self.train_prompts, *(self.eval_prompts or [])], args)
        args.num_train_epochs, args.max_steps = 1, args.total_updates
        self._schedule = Schedule(args)
        self._start = reference_at_start(model, reference)
        self._path = choose_head_path(model, self._start, head_impl, extras)
        if self._path.name == "logits":
            raise ValueError(f"{self.METHOD} reads statistics off hidden states, but {self._path.why}")
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
        self.loss_is_scaled_for_ga = True  # compute_loss divides by what the whole update holds itself
        self._completions = CompletionsFile(str(args.output_dir), args.show_every, self.is_world_process_zero())
        self._iteration: Any | None = None
        self.sampler = self._ready_sampler()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        allow_updates_without_gradient(self.accelerator)  # see `_has_work`

    def _ready_sampler(self) -> ResponseSampler:
        """What draws the responses, which has been asked whether it can."""
        if reason := why_not_handed_over(self.args.sampling_engine, has_adapter=has_adapter(self.model)):
            raise ValueError(f"sampling_engine={reason}")
        sampler = sampler_of(self.args)
        longest = max((ids for each in self._encoded for ids in each.values()), key=len)
        settings = SamplingSettings(max_new_tokens=self.args.max_new_tokens)
        try:
            with self.accelerator.autocast():
                sampler.prepare(self.model, self.tokenizer, longest, settings)
        except BaseException:
            sampler.close()  # the server may have taken the adapter before it was found wrong
            raise
        return sampler

    def evaluation_names(self) -> list[str]:
        """What an evaluation logs, without "eval_". A subclass whose evaluations log more says so here."""
        return [*(() if self.rewards is None else HELD_OUT_REWARDS), *HELD_OUT_NUMBERS]

    def _rewards_of(self, reward_funcs: Any, args: OnlineArguments, tokenizer: Any) -> Rewards | None:
        """The rewards of what the user passed; None only for a method that learns without."""
        return rewards_of(
            reward_funcs, args.reward_weights, tokenizer, device=args.device, trust_remote_code=args.trust_remote_code
        )

    def _check_rewards(self, prompts: Sequence[Prompt], args: OnlineArguments) -> None:
        if self.rewards is not None:
            self.rewards.check(prompts, args.max_new_tokens)

    def _check_fit_of_others(self, models: Sequence[Any | None]) -> None:
        """Raise ValueError where the reference, or another model, does not read every prompt with its response."""
        check_all_fit([self._start.model, *models], self._encoded, self.args.max_new_tokens)

    def _describe_iterations(self) -> str:
        args = self.args
        return (
            f"{counted(args.iterations, 'iteration')} of {counted(args.completions, 'completion')}, "
            f"{counted(args.updates_per_iteration, 'update')} each."
        )

    # ---- one iteration ----

    def get_train_dataloader(self) -> Any:
        """Places in the schedule, one a micro-batch, dealt out to the processes in turn."""
        return self.accelerator.prepare(self._schedule.loader())

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch; the first of an iteration collects its responses."""
        place = self._schedule.place(inputs["place"])
        if self._iteration is None or self._iteration.number != place.iteration:
            self._begin_iteration(place.iteration)
        iteration = self._iteration
        assert iteration is not None
        if not self._has_work(place):  # without gradients the optimizer changes nothing
            return torch.zeros((), device=self.args.device)
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        iteration.learning.seconds += time.perf_counter() - started
        return loss

    def _has_work(self, place: Place) -> bool:
        """Whether there is anything to learn from at this place; called once before each micro-batch."""
        return True

    def _begin_iteration(self, number: int) -> None:
        self._iteration = None  # nothing of the last one is kept in memory while the next is collected
        with self._each_process_alone():
            self._iteration = self.collector.collect(self.model, number, self.state.global_step)

    def _tell_drawing(self, drawn: int, total: int) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, DrawingCallback):
                callback.on_drawing(self.state, drawn, total)

    def _each_process_alone(self) -> Any:
        """A context in which each process runs its models without waiting for others, though weights are sharded."""
        return whole_weights([self.model, *self.collector.others])

    # ---- evaluation ----

    def floating_point_ops(self, inputs: Any) -> int:
        """0: what the loader yields are places, not tokens."""
        return 0

    def evaluate(
        self, eval_dataset: Any | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Reward, both exact KLs and length of one response to each held-out prompt, seeded.

        Every process samples and judges all of them, and the numbers of the first are those of all: a reward may be
        another one each time that it is asked, and what is the best model so far must be the same everywhere.

        Raises:
            ValueError: there are no held-out prompts.
        """
        prompts = self.eval_prompts if eval_dataset is None else prompts_of(eval_dataset, "eval_dataset")
        if not prompts:
            raise ValueError("evaluate() needs prompts: pass eval_dataset here or when the trainer is made")
        if eval_dataset is not None:
            self._check_rewards(prompts, self.args)
        with self._each_process_alone():
            [numbers] = broadcast_object_list([self.collector.judge_held_out(self.model, prompts)])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        self.log(dict(metrics))  # which adds what is no metric
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, *_: Any, **__: Any) -> Any:
        """Raises ValueError: responses to other prompts are sampled and scored by `evaluate(prompts)`."""
        raise ValueError(
            f"{self.METHOD} has prompts and no labels to predict: call evaluate(prompts) instead of predict(prompts)"
        )

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any) -> Any:  # type: ignore[override]
        """As `CheckpointedTrainer.train`."""
        self._iteration = None
        if not resume_from_checkpoint:
            self._completions.forget_from(0)
        return super().train(resume_from_checkpoint, **more)

    def described_data(self) -> dict[str, Any]:
        return self._described

    def _own_inputs(self) -> dict[str, str]:
        return prompts_inputs(self.train_prompts, self.eval_prompts)

    def _save_own_state(self, checkpoint: Path) -> None:
        """What outlives an iteration, and the iteration that the checkpoint lies within."""
        iteration = self._iteration
        is_used_up = self.state.global_step % self.args.updates_per_iteration == 0
        state = {
            "iteration": None if iteration is None or is_used_up else iteration.state_dict(),
            **self.collector.state_dict(),
            **self._state_of_learning(),
            "prompts": digest_of(self.train_prompts),
        }
        torch.save(state, self._state_file(checkpoint))

    def _state_of_learning(self) -> dict[str, Any]:
        """What updates change beside the weights."""
        return {}

    def _state_file(self, checkpoint: Path, process: int | None = None) -> Path:
        return checkpoint / self.STATE_FILE.format(self.args.process_index if process is None else process)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path, another = (self._state_file(Path(checkpoint), at) for at in (None, self.args.world_size))
        if not path.exists() or another.exists():
            why = f"holds no {path.name}" if not path.exists() else f"holds {another.name} too"
            raise ValueError(
                f"{checkpoint} {why}: it was not written by {self.METHOD} on as many processes as there are now "
                f"({self.args.world_size}), each of which keeps its own responses there. Go on with as many as then."
            )
        with reading(checkpoint, path.name):
            self._load_own_state(checkpoint, torch.load(path, weights_only=True, map_location="cpu"))

    def _load_own_state(self, checkpoint: str, state: dict[str, Any]) -> None:
        if state["prompts"] != digest_of(self.train_prompts) and not self.accept_changes:
            raise ValueError(
                f"{checkpoint} was written by a run on other prompts than these, or on these in another order: it "
                "would go on as another run. Put the prompts back, or start anew."
            )
        self.collector.load_state_dict(state)
        with self._each_process_alone():
            self.collector.ask_row_form(self.model)
        under_way = self._iteration_in(state)
        if under_way is not None:
            self._iteration = self.collector.restored(under_way)
        begun = 0 if under_way is None else 1
        self._completions.forget_from(self.state.global_step // self.args.updates_per_iteration + begun)

    def _iteration_in(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """The `state_dict` of the iteration that a checkpoint lies within; None where it lies between two."""
        under_way: dict[str, Any] | None = state["iteration"]
        return under_way
