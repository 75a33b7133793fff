"""`TDPOTrainer`: every loss of pairs, from DPO to SFT, on `transformers.Trainer`.

The trainer only connects the parts: rows become pairs (`batches`), pairs become hidden states (`models`), hidden states
become statistics (`scoring`), statistics become scores and a loss. Logging, checkpoints, distribution and optimisers
are transformers' and accelerate's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import ResponseBatch, TokenizedPair
from ...config.training_defaults import PAIRS
from ...config.trl_names import LOG_NAMES as TRL_LOG_NAMES
from ...models import Reference, reference_at_start
from ...recipe_data.input_digests import pairs_inputs
from ...records.json_files import read_json, write_json
from ...scores import PairScores, detached, score_pairs
from ...scoring.configured_loss import configured_loss
from ...scoring.fitting import check_lengths
from ...scoring.head_path import choose_head_path
from ...scoring.layout import choose_layout
from ...scoring.pair_metrics import pair_metrics
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.readings import Reading
from ...scoring.reference_source import CachedReference
from ..arguments import one_process_a_device, other_values
from ..best_model import check_metric
from ..kl_target_control import KLTargetControl
from ..logged_metrics import MetricsFile, TrainingMeter
from ..policy import settled
from ..resumption import reading
from ..sharding import check_sharding
from .config import TDPOConfig, groups_by_length
from .datasets import PairDatasets, all_pairs, seen_in_training
from .evaluating import PairEvaluation
from .order import LengthGroupedOrder
from .recording import pair_card, pair_record
from .reference_caching import reference_source_of
from .trl_calls import PairFunction, check_call, check_parts, prepare_models
from .trl_logs import TRLLogs
from .uneven_batches import IS_SPARE, SpareCollator, WithSpares, each_pair_once

logger = logging.getLogger(__name__)

LOSS_STATE = "loss_state.json"


class TDPOTrainer(PairEvaluation):
    """Train a causal language model on preference pairs with an exact KL to the reference.

    Args:
        model: a name, a folder or a loaded causal language model. Its dropout is switched off, an adapter's is not.
        ref_model: the reference, likewise. None: the policy's own start, which is the adapter switched
            off where that gives the start, and a frozen copy otherwise.
        args: TDPOConfig, which understands the names of TRL's DPOConfig.
        data_collator: None, or TRL's own for preferences, which does what is done here in any case.
        train_dataset: rows with `prompt`, `chosen`, `rejected` in any form that TRL's DPO reads: a
            `datasets.Dataset`, an iterable of mappings, `Preferences`, or `TokenizedPairs`.
        eval_dataset: the same, None, or a dictionary of several by name.
        processing_class: the tokenizer; loaded from `model` when that is a name.
        compute_metrics: called at the end of an evaluation with an EvalPrediction, whose `predictions` are arrays `[P]`
            by the names of the logs (margin, chosen_logp, …: a number for each pair); what it returns is logged too.
        callbacks, optimizers: as in `transformers.Trainer`.
        quantization_config: how to quantise a model that is given by name while it is loaded, as transformers'
            `BitsAndBytesConfig`; with a `peft_config`. The reference is then the quantised base.
        peft_config: a peft configuration to wrap the model with.
        say: called with sentences about what is done with the reference.
        cache_progress: called while a reference cache is made, with the number of pairs done, of all pairs, and a note.

    The order of the arguments is TRL's.

    Raises:
        BadPreferences: a row is broken (named by source, row and field), or repeats an earlier one. TDPOConfig's
            `on_bad_rows` and `repeated_rows` say what is skipped or kept instead.
        TypeError: arguments that do not exist; all of them are named, with what to use.
        ValueError: arguments that do not fit together.
    """

    args: TDPOConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any | None = None,
        args: TDPOConfig | None = None,
        data_collator: Any | None = None,
        train_dataset: Any | None = None,
        eval_dataset: Any | None = None,
        processing_class: Any | None = None,
        compute_metrics: PairFunction | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any | None = None,
        peft_config: Any | None = None,
        *,
        say: Callable[[str], None] = logger.info,
        cache_progress: Callable[[int, int, str], None] | None = None,
        **others: Any,
    ) -> None:
        args = TDPOConfig(output_dir="tdpo_output") if args is None else args
        if not isinstance(args, TDPOConfig):
            raise TypeError(
                f"args must be a TDPOConfig, got {type(args).__name__}; it understands the fields of TRL's DPOConfig"
            )
        check_call(args, data_collator, others)
        args.check_teacher(ref_model)
        args = copy.copy(args)  # what follows from the model is written into it below, and the caller's stays as it is
        one_process_a_device(args, logger.warning)
        check_sharding(args)
        given = model
        prepared = prepare_models(model, ref_model, processing_class, peft_config, args, quantization_config)
        processing_class = prepared.tokenizer
        model, self.precision, reference = settled(prepared.policy, prepared.ref_model, args, PAIRS)
        start = reference_at_start(model, reference)
        loss = configured_loss(args.loss, args.beta, args.alpha, args.label_smoothing, args.kl_term, args.gamma)
        path = choose_head_path(model, start, args.head_impl, loss.extras)
        self.preference_loss, self._trl_logs = loss, TRLLogs(args)
        if compute_metrics is None:
            data_sets = list(eval_dataset) if isinstance(eval_dataset, dict) else []
            check_metric(args, self.evaluation_names(), data_sets, TRL_LOG_NAMES)
        self._datasets = PairDatasets(model, processing_class, args)
        train_pairs, eval_pairs = (
            self._datasets.pairs("train", train_dataset),
            self._datasets.pairs("eval", eval_dataset),
        )
        for sentence in seen_in_training(train_pairs, eval_pairs):
            logger.warning(sentence)
        pad_token_id = processing_class.pad_token_id
        pairs = [*all_pairs(train_pairs), *all_pairs(eval_pairs)]
        check_parts(pairs, args)
        check_lengths(pairs, [m.config for m in (model, start.model) if m is not None])
        collator = choose_layout(
            model, pairs, pad_token_id, args.prefix_sharing, args.max_tokens_per_row, other_models=[start.model]
        )
        self.collator, self.layout = collator, collator.describe()
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), MetricsFile(str(args.output_dir))],
            optimizers=optimizers,
        )
        # compute_loss divides by the pairs of the whole update itself; see there.
        self.loss_is_scaled_for_ga = True
        self._meter = TrainingMeter()
        self._eval_tables: list[Tensor] = []
        self._pair_function = compute_metrics
        source = reference_source_of(self, start, path, pairs, say, cache_progress)
        self.statistics = PolicyStatistics(path, source)
        if isinstance(source, CachedReference):
            # Where rows are laid out, ahead of the step and perhaps by a worker process, they are read as well.
            self.data_collator = self.collator = replace(collator, reference=source.cache.reader())
        if loss.controller is not None:
            self.add_callback(KLTargetControl(loss, self._total))
        self.begin_record(pair_record(self, given, start, ref_model))
        logger.info("%s %s", self.describe(), self.precision.describe())

    # ---- set-up ----

    @property
    def tokenization(self) -> dict[str, dict[str, Any]]:
        """What became of the rows of each data set, by its name; see `TokenizationReport`."""
        return self._datasets.reports

    @property
    def data_files(self) -> dict[str, str | None]:
        """The file that each data set was read from, by its name; None where rows do not say."""
        return self._datasets.files

    @property
    def reference(self) -> Reference | None:
        """The reference that runs in every step; None where a cache has taken its place for good."""
        return self.statistics.source.running

    def describe(self) -> str:
        """Which paths run, in a sentence for the log."""
        beside = self.preference_loss.describe(self.statistics.path.name)
        return f"{self.statistics.describe()} Layout: {self.layout}.{beside}"

    # ---- batches ----

    def get_train_dataloader(self) -> Any:
        """As transformers', with each pair once in an epoch, on however many processes."""
        if self.args.world_size == 1 or self.train_dataset is None:
            return super().get_train_dataloader()
        pairs: Any = self.train_dataset
        with other_values(self, train_dataset=WithSpares(pairs), data_collator=SpareCollator(self.collator)):
            return each_pair_once(super().get_train_dataloader())

    def _get_train_sampler(self, train_dataset: Any | None = None) -> Any:
        """As transformers' sampler; a length is the number of tokens that the layout computes."""
        pairs: Any = self.train_dataset if train_dataset is None else train_dataset
        if not groups_by_length(self.args):
            return super()._get_train_sampler(pairs)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        # The epoch comes from the state, which a checkpoint restores on every process: accelerate tells samplers the
        # epoch only where they are not wrapped, as they are on several processes after resumption.
        return self._length_grouped(pairs, size, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if not groups_by_length(self.args):
            return super()._get_eval_sampler(eval_dataset)
        return self._length_grouped(eval_dataset, self.args.eval_batch_size, lambda: 0)

    def _length_grouped(self, pairs: Sequence[TokenizedPair], size: int, epoch: Callable[[], int]) -> Any:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedOrder([self.collator.tokens(pair) for pair in pairs], size, seed, epoch)

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum over this micro-batch's pairs divided by the pairs of the whole update.

        `num_items_in_batch` counts the pairs of all micro-batches and processes (`_get_num_items_in_batch`),
        and distributed data parallelism averages gradients over processes; so every pair weighs the same
        however the update is split.
        """
        is_spare = inputs.get(IS_SPARE, False)
        batch = ResponseBatch.from_inputs({name: value for name, value in inputs.items() if name != IS_SPARE})
        # A second model is not wrapped by accelerate: both must compute in one precision, or they differ at step 0.
        with self.accelerator.autocast():
            wanted = self.preference_loss
            stats = self.statistics(model, batch, extras=wanted.extras, learned_tokens=wanted.learned_tokens(batch))
        scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
        loss = self.preference_loss(stats, scores, batch.sequence_index, batch.num_prompts)
        if is_spare:
            return 0.0 * loss.per_pair.sum()
        of_pairs = self.preference_loss.of_pairs
        table = pair_metrics(stats, scores, loss, batch.sequence_index, batch.num_prompts, of_pairs)
        if model.training:
            self.preference_loss.observe(loss, stats, batch.sequence_index, batch.num_prompts)
            self._meter.add(table, batch.num_tokens)
            self._trl_logs.add(batch)
        total = loss.per_pair.sum()
        if num_items_in_batch is None:
            reduced = total / batch.num_prompts
        else:
            reduced = total * self.accelerator.num_processes / num_items_in_batch
        self._watch(reduced, partial(self._non_finite, reduced.detach(), detached(scores)), at_once=not model.training)
        return (reduced, table) if return_outputs else reduced

    def _non_finite(self, loss: Tensor, scores: PairScores) -> str:
        ranges = ", ".join(
            f"{name} up to {float(value.abs().max()):.3g}" for name, value in vars(scores).items() if value is not None
        )
        return (
            f"the loss became {float(loss)} at step {self.state.global_step} ({ranges}). Lower the learning "
            "rate, set max_grad_norm, or train in float32; a policy that forbids what the reference allows has an "
            "infinite KL."
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        if not batch_samples:
            return None
        pairs: int = sum(batch["num_prompts"] for batch in batch_samples if IS_SPARE not in batch)
        if self.args.world_size == 1:
            return pairs
        whole: Tensor = self.accelerator.reduce(torch.tensor(pairs, device=device), reduction="sum")
        return whole

    def _readings(self) -> list[Reading]:
        return [self._meter.sums, *self.preference_loss.readings]

    # ---- checkpoints ----

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **more: Any
    ) -> Any:
        """As `CheckpointedTrainer.train`."""
        self._meter, self._trl_logs = TrainingMeter(), TRLLogs(self.args)
        return super().train(resume_from_checkpoint, **more)

    def _own_inputs(self) -> dict[str, str]:
        return pairs_inputs(self.train_dataset, self.eval_dataset)

    def described_data(self) -> dict[str, Any]:
        return self._datasets.described

    def model_card(self) -> str:
        """The card of the model as it is now: method, data, numbers, versions; Markdown."""
        return pair_card(self)

    def _save_own_state(self, checkpoint: Path) -> None:
        """The coefficient of a KL beside the loss, with the state of what changes it."""
        state = self.preference_loss.state_dict()
        if state and self.args.should_save:
            write_json(checkpoint / LOSS_STATE, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / LOSS_STATE
        if path is not None and path.exists():
            with reading(checkpoint, LOSS_STATE):
                self.preference_loss.load_state_dict(read_json(path))
