"""`TDPOTrainer`: DPO, TDPO1, TDPO2, IPO and SFT on `transformers.Trainer`.

The trainer only connects the parts: rows become pairs (`batches`), pairs become hidden states (`models`), hidden states
become statistics (`scoring`), statistics become scores and a loss. Logging, checkpoints, distribution and optimisers
are transformers' and accelerate's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...batches import ResponseBatch, TokenizedPair
from ...config.training_defaults import PAIRS
from ...config.trl_names import LOG_NAMES as TRL_LOG_NAMES
from ...models import Reference, causal_lm_of, reference_at_start
from ...recipe_data.input_digests import pairs_inputs
from ...records.json_files import read_json, write_json
from ...scores import PairScores, score_pairs
from ...scoring.configured_loss import beta_of, configured_loss
from ...scoring.fitting import check_lengths
from ...scoring.head_path import HeadPath, choose_head_path
from ...scoring.layout import choose_layout, cover
from ...scoring.pair_metrics import LOGGED_OF_PAIRS, averages, pair_metrics
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.reference_source import CachedReference, ReferenceSource
from ..arguments import one_process_a_device, other_values
from ..best_model import TIMES, check_metric
from ..checkpointed_trainer import CheckpointedTrainer
from ..kl_target_control import KLTargetControl
from ..logged_metrics import MetricsFile, TrainingMeter
from ..policy import settled
from ..resumption import reading
from ..sharding import check_sharding, shard_reference, whole_model_saved
from .config import TDPOConfig, groups_by_length
from .datasets import PairDatasets, all_pairs, seen_in_training
from .order import LengthGroupedOrder
from .recording import pair_card, pair_record
from .reference_caching import CacheRequest, about_cache, pair_reference_source
from .trl_calls import PairFunction, check_call, check_parts, numbers_of, prepare_models
from .trl_logs import TRLLogs

logger = logging.getLogger(__name__)

LOSS_STATE = "loss_state.json"


class TDPOTrainer(CheckpointedTrainer):
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
        quantization_config: must be None; load a quantised model yourself.
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
        check_call(args, data_collator, quantization_config, others)
        args.check_teacher(ref_model)
        args = copy.copy(args)  # what follows from the model is written into it below, and the caller's stays as it is
        one_process_a_device(args, logger.warning)
        check_sharding(args)
        given = model
        prepared = prepare_models(model, ref_model, processing_class, peft_config, args)
        processing_class = prepared.tokenizer
        model, self.precision, reference = settled(prepared.policy, prepared.ref_model, args, PAIRS)
        start = reference_at_start(model, reference)
        loss = configured_loss(args.loss, args.beta, args.alpha, args.label_smoothing, args.kl_term)
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
        source = self._reference_source(start, path, pairs, say, cache_progress)
        self.statistics = PolicyStatistics(path, source)
        if isinstance(source, CachedReference):
            # The layout alone and not the cache itself, which worker processes of the data loader would copy.
            self.data_collator = self.collator = replace(collator, reference_rows=source.cache.layout.rows)
        if loss.controller is not None:
            self.add_callback(KLTargetControl(loss, self._total))
        self.begin_record(pair_record(self, given, start, ref_model))
        logger.info("%s %s", self.describe(), self.precision.describe())

    # ---- set-up ----

    def evaluation_names(self) -> list[str]:
        """What an evaluation logs, without "eval_". A subclass whose evaluations log more says so here."""
        numbers = self.preference_loss.logged(dict.fromkeys(LOGGED_OF_PAIRS, 0.0))
        return [*numbers, *self._trl_logs.names, *TIMES]

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

    def _reference_source(
        self,
        start: Reference,
        path: HeadPath,
        pairs: list[TokenizedPair],
        say: Callable[[str], None],
        progress: Callable[[int, int, str], None] | None,
    ) -> ReferenceSource:
        request = CacheRequest(
            policy=self.model,
            start=start,
            path=path,
            collator=self.collator,
            pairs=pairs,
            device=self.args.device,
            autocast=self.accelerator.autocast,
            precision=str(self.accelerator.mixed_precision),
            # Without a backward pass twice the pairs of a training step need less memory than one.
            batch_size=self.args.precompute_ref_batch_size or 2 * self.args.per_device_train_batch_size,
            about=about_cache(start.model or self.model, self._datasets.sources, str(self.args.output_dir)),
        )
        train: Any = self.train_dataset
        return pair_reference_source(
            request,
            self.args,
            len(pairs) if train is None else len(train),
            sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled,
            place=self._placed,
            say=say,
            progress=progress,
        )

    def describe(self) -> str:
        """Which paths run, in a sentence for the log."""
        beside = self.preference_loss.describe(self.statistics.path.name)
        return f"{self.statistics.describe()} Layout: {self.layout}.{beside}"

    def _placed(self, reference: Reference) -> Reference:
        """The reference on the policy's device, sharded as the policy is."""
        model = reference.model
        if model is None:
            return reference
        if self.accelerator.is_fsdp2:
            model = shard_reference(self.accelerator, model)
        elif self.is_deepspeed_enabled:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        else:
            model.to(self.args.device)
        return replace(reference, model=model)

    # ---- batches ----

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
        batch = ResponseBatch.from_inputs(inputs)
        # A second model is not wrapped by accelerate: both must compute in one precision, or they differ at step 0.
        with self.accelerator.autocast():
            stats = self.statistics(model, batch, extras=self.preference_loss.extras)
        scores = score_pairs(stats, batch.sequence_index, batch.num_prompts)
        loss = self.preference_loss(stats, scores, batch.sequence_index, batch.num_prompts)
        beta = beta_of(self.preference_loss.of_pairs)
        table = pair_metrics(stats, scores, loss, batch.sequence_index, batch.num_prompts, beta)
        if model.training:
            self.preference_loss.observe(loss, stats, batch.sequence_index, batch.num_prompts)
            self._meter.add(table, batch.num_tokens)
            self._trl_logs.add(batch)
        total = loss.per_pair.sum()
        if num_items_in_batch is None:
            reduced = total / batch.num_prompts
        else:
            reduced = total * self.accelerator.num_processes / num_items_in_batch
        if not torch.isfinite(reduced):
            raise FloatingPointError(self._non_finite(reduced, scores))
        return (reduced, table) if return_outputs else reduced

    def _non_finite(self, loss: Tensor, scores: PairScores) -> str:
        ranges = ", ".join(
            f"{name} up to {float(value.detach().abs().max()):.3g}" for name, value in vars(scores).items()
        )
        return (
            f"the loss became {float(loss.detach())} at step {self.state.global_step} ({ranges}). Lower the learning "
            "rate, set max_grad_norm, or train in float32; a policy that forbids what the reference allows has an "
            "infinite KL."
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        pairs = torch.stack([batch["num_prompts"].to(device) for batch in batch_samples]).sum()
        return self.accelerator.gather(pairs).sum() if self.args.world_size > 1 else pairs

    # ---- evaluation and logs ----

    def evaluate(
        self, eval_dataset: Any | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on `eval_dataset` (anything that the constructor takes), or on the constructor's."""
        is_name = isinstance(eval_dataset, str)  # of one of the constructor's data sets
        pairs = eval_dataset if is_name else self._datasets.pairs(metric_key_prefix, eval_dataset)
        if not is_name:
            self._cover(all_pairs(pairs))
        with self._meter.paused():
            return super().evaluate(pairs, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """The numbers of `evaluate` on `test_dataset` (anything that the constructor takes) as the `metrics` of
        transformers' PredictionOutput; of pairs there are no other predictions."""
        pairs: Any = self._datasets.pairs(metric_key_prefix, test_dataset)
        if pairs is None or isinstance(pairs, dict):
            raise ValueError("predict() needs one dataset of rows with prompt, chosen and rejected")
        self._cover(all_pairs(pairs))
        with self._meter.paused():
            return super().predict(pairs, ignore_keys, metric_key_prefix)

    def _cover(self, pairs: list[TokenizedPair]) -> None:
        """Check the lengths of pairs that come later, and whether the layout holds for them."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # The forward of a sharded model is every process's concern; longer rows are padded there.
            check_lengths(pairs, [causal_lm_of(self.model).config])
            return
        reference = self.statistics.reference_model
        models = [self.model, *([reference] if reference else [])]
        check_lengths(pairs, [model.config for model in models])
        cover(self.model, self.collator, pairs, self.args.prefix_sharing, other_models=models[1:])

    def get_eval_dataloader(self, eval_dataset: Any | None = None) -> Any:
        """As transformers', but `dataloader_drop_last` drops nothing here: an evaluation counts every pair."""
        with other_values(self.args, dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As `get_eval_dataloader`."""
        with other_values(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(test_dataset)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, table = self.compute_loss(model, inputs, return_outputs=True)
        # gather_for_metrics drops the rows with which accelerate evens out the last batch.
        self._eval_tables.append(self.accelerator.gather_for_metrics(table).cpu())
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        self._eval_tables = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        table = torch.cat(self._eval_tables)
        numbers = self.preference_loss.logged(averages(table.sum(dim=0), table.shape[0]))
        own = {**numbers, **numbers_of(self._pair_function, table)}
        named = {f"{metric_key_prefix}_{name}": value for name, value in own.items()}
        named |= self._trl_logs.of_evaluation(numbers, self, metric_key_prefix)
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._check_gradient(logs)
        if "loss" in logs and self._meter.pairs:
            totals = self.accelerator.reduce(self._meter.totals(self.args.device), reduction="sum")
            numbers = self.preference_loss.logged(self._meter.averages(totals))
            self._meter = TrainingMeter()
            numbers.pop("loss", None)  # transformers' own covers the same pairs and the same steps
            logs = {**logs, **numbers, **self.preference_loss.aim, **self._trl_logs.of_training(numbers, self)}
        source = self.statistics.source
        if "train_runtime" in logs and isinstance(source, CachedReference):  # made before, for other runs as well
            logs = {**logs, "reference_cache_seconds": round(source.cache.seconds_to_make, 3)}
        super().log(logs, start_time)

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

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """As transformers', but a sharded model is always written whole; its checkpoints are as they are asked for."""
        folder = None if output_dir is None else str(output_dir)
        with nullcontext() if _internal_call else whole_model_saved(self.accelerator):
            super().save_model(folder, _internal_call)

    def _outside_training(self) -> Any:
        return self._meter.paused()
