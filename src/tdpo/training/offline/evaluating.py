"""How a trainer on pairs evaluates, and what it logs of the pairs that it learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...batches import ResponseCollator, TokenizedPair
from ...models import causal_lm_of
from ...scoring.configured_loss import ConfiguredLoss
from ...scoring.fitting import check_lengths
from ...scoring.layout import cover
from ...scoring.pair_metrics import LOGGED_OF_PAIRS, averages
from ...scoring.policy_statistics import PolicyStatistics
from ...scoring.reference_source import CachedReference
from ..arguments import other_values
from ..best_model import TIMES
from ..checkpointed_trainer import CheckpointedTrainer
from ..logged_metrics import TrainingMeter
from .config import TDPOConfig
from .datasets import PairDatasets, all_pairs
from .trl_calls import PairFunction, numbers_of
from .trl_logs import TRLLogs


class PairEvaluation(CheckpointedTrainer):
    """The part of `TDPOTrainer` that judges pairs. Its `compute_loss` gives a row of numbers for each pair, which are
    averaged here over an evaluation, or between two logs of a training. The attributes are set by its constructor."""

    args: TDPOConfig
    collator: ResponseCollator
    preference_loss: ConfiguredLoss
    statistics: PolicyStatistics
    _datasets: PairDatasets
    _meter: TrainingMeter
    _trl_logs: TRLLogs
    _pair_function: PairFunction | None
    _eval_tables: list[Tensor]

    def evaluation_names(self) -> list[str]:
        """What an evaluation logs, without "eval_". A subclass whose evaluations log more says so here."""
        numbers = self.preference_loss.logged(dict.fromkeys(LOGGED_OF_PAIRS, 0.0))
        return [*numbers, *self._trl_logs.names, *TIMES]

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
        # Of all processes: one alone may have had nothing but a spare pair.
        totals = self._total(self._meter.totals()) if "loss" in logs else None
        if totals is not None and TrainingMeter.pairs_of(totals):
            numbers = self.preference_loss.logged(self._meter.averages(totals))
            self._meter = TrainingMeter()
            numbers.pop("loss", None)  # transformers' own covers the same pairs and the same steps
            logs = {**logs, **numbers, **self.preference_loss.aim, **self._trl_logs.of_training(numbers, self)}
        source = self.statistics.source
        if "train_runtime" in logs and isinstance(source, CachedReference):  # made before, for other runs as well
            logs = {**logs, "reference_cache_seconds": round(source.cache.seconds_to_make, 3)}
        super().log(logs, start_time)

    def _outside_training(self) -> Any:
        return self._meter.paused()
