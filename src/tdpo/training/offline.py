"""`TDPOTrainer`: DPO, TDPO1 and TDPO2 on `transformers.Trainer`.

The trainer only wires: rows become pairs (`batches`), pairs become hidden states (`models`), hidden
states become statistics (`token_stats`), statistics become scores and a loss. Logging, checkpoints,
distribution and optimisers are transformers' and accelerate's.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ..batches import PairBatch, PairCollator, TokenizedPair, TokenizedPairs, tokenize_pairs
from ..losses import PreferenceLoss, dpo_loss, tdpo1_loss, tdpo2_loss
from ..models import (
    end_token_ids,
    find_head,
    has_adapter,
    load_causal_lm,
    load_tokenizer,
    policy_hidden,
    reference_for,
    select_logits,
)
from ..preferences import PreferenceRow, preferences_from_dataset
from ..scores import PairScores, score_pairs
from ..token_stats import Extra, TokenStats, linear_token_stats, token_stats
from .config import TDPOConfig
from .metrics import MetricsFile, TrainingMeter, averages, pair_metrics

logger = logging.getLogger(__name__)

EXTRAS: tuple[Extra, ...] = ("reverse_kl", "policy_entropy")
COMPLETE = "COMPLETE"  # written last into a checkpoint, so that one cut short by a kill is not resumed from


class TDPOTrainer(Trainer):
    """Train a causal language model on preference pairs with an exact KL to the reference.

    Args:
        model: a name, a folder or a loaded causal language model.
        ref_model: the reference, likewise. None: the policy's own start, which is the adapter switched
            off for a peft model and a frozen copy otherwise.
        args: TDPOConfig.
        train_dataset: rows with `prompt`, `chosen`, `rejected` in any form that TRL's DPO reads: a
            `datasets.Dataset`, an iterable of mappings, `Preferences`, or `TokenizedPairs`.
        eval_dataset: the same, or None.
        processing_class: the tokenizer; loaded from `model` when that is a name.
        peft_config: a peft configuration to wrap the model with.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        BadPreferences: a row is broken (named by source, row and field).
        ValueError: arguments that do not fit together.
    """

    args: TDPOConfig

    def __init__(
        self,
        model: Any,
        ref_model: Any | None = None,
        args: TDPOConfig | None = None,
        train_dataset: Any | None = None,
        eval_dataset: Any | None = None,
        processing_class: Any | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = TDPOConfig(output_dir="tdpo_output") if args is None else args
        if not isinstance(args, TDPOConfig):
            raise TypeError(f"args must be a TDPOConfig, got {type(args).__name__}")
        processing_class = _tokenizer(processing_class, model, args)
        model = _policy(model, peft_config, args)
        if isinstance(ref_model, str | Path):
            ref_model = load_causal_lm(ref_model, trust_remote_code=args.trust_remote_code)
        self.reference = reference_for(model, ref_model)
        self.policy_head = find_head(model)
        self._say_which_path()
        self.tokenization: dict[str, dict[str, Any]] = {}
        tokenize = self._tokenizing(model, processing_class, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(processing_class.pad_token_id),
            train_dataset=tokenize("train", train_dataset),
            eval_dataset=tokenize("eval", eval_dataset),
            processing_class=processing_class,
            callbacks=[*(callbacks or []), MetricsFile(str(args.output_dir))],
            optimizers=optimizers,
        )
        # compute_loss divides by the pairs of the whole update itself; see there.
        self.loss_is_scaled_for_ga = True
        self._meter = TrainingMeter()
        self._eval_tables: list[Tensor] = []
        self._place_reference()

    # ---- set-up ----

    def _say_which_path(self) -> None:
        if self.policy_head is None or self.reference.head is None:
            self.policy_head = None
            logger.warning(
                "This model's logits are not a linear head (with scale and soft cap) on its body's hidden states; "
                "statistics come from its full logits, at more memory."
            )
        else:
            logger.info("Statistics from hidden states; reference: %s.", self.reference.kind)

    def _place_reference(self) -> None:
        if self.reference.model is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.reference.model = self.accelerator.prepare_model(self.reference.model, evaluation_mode=True)
        else:
            self.reference.model.to(self.args.device)

    def _tokenizing(self, model: Any, tokenizer: Any, args: TDPOConfig) -> Callable[[str, Any], Any]:
        ends = end_token_ids(model, tokenizer)
        max_length = _within_context(model, args.max_length)

        def tokenize(name: str, dataset: Any) -> list[TokenizedPair] | None:
            if dataset is None:
                return None
            if isinstance(dataset, TokenizedPairs):
                tokenized = dataset
            else:
                tokenized = tokenize_pairs(_rows(dataset, name), tokenizer, max_length, end_ids=ends)
            self.tokenization[name] = tokenized.report.as_dict()
            for sentence in tokenized.report.warnings():
                logger.warning("%s data: %s", name, sentence)
            return tokenized.pairs

        return tokenize

    # ---- one step ----

    def token_statistics(self, model: Any, batch: PairBatch) -> TokenStats:
        """Statistics `[N]` of a batch's response tokens, policy with gradient, reference without."""
        inputs, index = batch.model_inputs(), batch.response_index
        if self.policy_head is None:
            reference_logits = self.reference.logits(model, inputs, index)
            return token_stats(select_logits(model, inputs, index), reference_logits, batch.target_ids, extras=EXTRAS)
        reference_hidden, reference_head = self.reference.hidden_and_head(model, inputs, index)
        hidden = policy_hidden(model, inputs, index)
        return linear_token_stats(
            hidden,
            self.policy_head(),
            reference_hidden,
            reference_head,
            batch.target_ids,
            extras=EXTRAS,
            impl=self.args.head_impl,
        )

    def preference_loss(self, scores: PairScores) -> PreferenceLoss:
        """The configured loss of P pairs."""
        beta, smoothing = self.args.beta, self.args.label_smoothing
        if self.args.loss == "dpo":
            return dpo_loss(scores, beta=beta, label_smoothing=smoothing)
        if self.args.loss == "tdpo1":
            return tdpo1_loss(scores, beta=beta, label_smoothing=smoothing)
        return tdpo2_loss(scores, beta=beta, alpha=self.args.alpha, label_smoothing=smoothing)

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
        batch = PairBatch.from_inputs(inputs)
        stats = self.token_statistics(model, batch)
        scores = score_pairs(stats, batch.sequence_index, batch.num_pairs)
        loss = self.preference_loss(scores)
        table = pair_metrics(stats, scores, loss, batch.sequence_index, batch.num_pairs)
        if model.training:
            self._meter.add(table, int(batch.attention_mask.sum()))
        total = loss.per_pair.sum()
        if num_items_in_batch is None:
            reduced = total / batch.num_pairs
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
            f"the loss became {float(loss)} at step {self.state.global_step} ({ranges}). Lower the learning rate, "
            "set max_grad_norm, or train in float32; a policy that forbids what the reference allows has an infinite KL."
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        if not batch_samples:
            return None
        pairs = torch.stack([batch["num_pairs"].to(device) for batch in batch_samples]).sum()
        return self.accelerator.gather(pairs).sum() if self.args.world_size > 1 else pairs

    # ---- evaluation and logs ----

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
        numbers = averages(table.sum(dim=0), table.shape[0])
        named = {f"{metric_key_prefix}_{name}": value for name, value in numbers.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._meter.pairs:
            totals = self.accelerator.reduce(self._meter.totals(self.args.device), reduction="sum")
            numbers = self._meter.logged(totals)
            numbers.pop("loss", None)  # transformers' own covers the same pairs and the same steps
            logs = {**logs, **numbers}
        super().log(logs, start_time)

    # ---- checkpoints ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / COMPLETE).touch()


def _tokenizer(given: Any | None, model: Any, args: TDPOConfig) -> Any:
    if given is None:
        name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
        if not name:
            raise ValueError(
                "processing_class is missing and the model does not say where it came from: pass a tokenizer"
            )
        return load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    if given.pad_token_id is None:
        given = copy.deepcopy(given)
        given.pad_token = given.eos_token
    return given


def _policy(model: Any, peft_config: Any | None, args: TDPOConfig) -> Any:
    """Load, switch off the model's own dropout (a KL to the reference needs a definite policy), wrap."""
    if isinstance(model, str | Path):
        model = load_causal_lm(model, trust_remote_code=args.trust_remote_code)
    if peft_config is not None and has_adapter(model):
        raise ValueError("peft_config was given, but the model has an adapter already; merge it first or leave one out")
    if not has_adapter(model):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if peft_config is None:
        return model
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def _rows(dataset: Any, name: str) -> Sequence[PreferenceRow]:
    rows = getattr(dataset, "rows", None)
    if isinstance(rows, list):
        return rows
    return preferences_from_dataset(dataset, source=f"{name}_dataset").rows


def _within_context(model: Any, max_length: int | None) -> int | None:
    """The length limit, no longer than the positions that the model has."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return max_length
    return positions if max_length is None else min(max_length, positions)
