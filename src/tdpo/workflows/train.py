"""From a recipe and a run directory to a trained model: what `tdpo train` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from ..batches import TokenizedPairs
from ..config import Recipe
from ..models import load_tokenizer, model_facts
from ..recipe_data.inputs import pairs_inputs, recipe_inputs, settle_inputs
from ..recipe_data.pairs import RecipeData, read_data, tokenize_data
from ..runs import RunDirectory
from ..training.callbacks import GracefulStop, Progress, RunStatus, Say
from ..training.offline.config import TDPOConfig, grouping_by_length
from ..training.offline.trainer import TDPOTrainer
from ..training.resume import checkpoint_to_resume
from .common import last_log, load_policy, save_trained, split_batch, versions_of, warn_of_slow_dtype, without_prefix
from .model_card import model_card

logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    run: RunDirectory,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    progress: Progress | None = None,
    cache_progress: Progress | None = None,
    say: Say = logger.info,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train as the recipe says and leave model, metrics and model card in the run directory.

    The data is read, validated and tokenised before the model's weights load. The first Ctrl-C (or SIGTERM) lets the
    update under way finish, writes a checkpoint and raises KeyboardInterrupt; a second one stops at once.

    Args:
        recipe: the resolved recipe.
        run: its directory, as `RunDirectory.training` gives it.
        resume: continue from the newest complete checkpoint, or from the start where there is none.
        last_good: where that is damaged, continue from the newest one that is not.
        accept_changes: continue also with other data, weights or functions than the checkpoint was trained with.
        progress: called after every update.
        cache_progress: called while a reference cache is made, with pairs done and in all.
        say: told what is being done, in sentences.
        callbacks: further transformers callbacks.

    Returns:
        {"steps", "seconds", "train": last logged numbers, "eval": held-out numbers or None, "model": path}
    """
    if recipe.training.num_threads:
        torch.set_num_threads(recipe.training.num_threads)
    checkpoint = checkpoint_to_resume(run, last_good=last_good, say=say) if resume else None
    if recipe.environment is not None:
        recipe.environment.load()  # training does not use it, but evaluating the run will
    data = read_data(recipe)
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    facts = model_facts(recipe.model.name, tokenizer, trust_remote_code=recipe.model.trust_remote_code)
    pairs = tokenize_data(data, recipe, tokenizer, facts)
    if checkpoint is not None:
        inputs = {**recipe_inputs(recipe), **pairs_inputs(pairs[0].pairs, pairs[1] and pairs[1].pairs)}
        settle_inputs(run, checkpoint, inputs, accept=accept_changes, say=say)
    described = _describe_data(data, pairs)
    run.write_json("data.json", described)
    for sentence in (s for part in pairs if part for s in part.report.warnings()):
        say(sentence)
    warn_of_slow_dtype(recipe.model.dtype, say)
    set_seed(recipe.seed)
    stop = GracefulStop(say)
    trainer = TDPOTrainer(
        load_policy(recipe.model),
        ref_model=recipe.model.reference,
        args=trainer_arguments(recipe),
        train_dataset=pairs[0],
        eval_dataset=pairs[1],
        processing_class=tokenizer,
        callbacks=[stop, RunStatus(run, progress, _note), *callbacks],
        say=say,
        cache_progress=cache_progress,
    )
    trainer.inputs, trainer.accept_changes = recipe_inputs(recipe), accept_changes
    trainer.remove_callback(PrinterCallback)  # the caller's progress shows what it would print
    say(trainer.describe())
    say(f"Continuing from {checkpoint}." if checkpoint else f"{len(pairs[0].pairs)} pairs, {_length(recipe)}.")
    with stop.listening():
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stop.raise_if_asked()
    held_out = trainer.evaluate() if pairs[1] is not None else None
    numbers = {"train": last_log(trainer), "eval": without_prefix(held_out)}
    card = model_card(recipe, described, numbers["train"] or {}, numbers["eval"], versions_of(run))
    place = save_trained(trainer, run, card)
    return {"steps": trainer.state.global_step, "seconds": result.metrics["train_runtime"], "model": place, **numbers}


def trainer_arguments(recipe: Recipe) -> TDPOConfig:
    """The recipe as `TDPOConfig`: batches split over processes and micro-batches without changing the update."""
    training, loss = recipe.training, recipe.loss
    per_device, accumulation = split_batch(
        training.batch_size, training.micro_batch_size, "training.batch_size", "training.micro_batch_size", "pairs"
    )
    given = {"beta": loss.beta, "alpha": loss.alpha}
    strength: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    length: dict[str, Any] = {"max_steps": training.max_steps} if training.max_steps else {}
    if training.epochs:
        length["num_train_epochs"] = training.epochs
    order = grouping_by_length() if training.group_by_length else {}
    rate: dict[str, Any] = {"learning_rate": training.learning_rate}
    return TDPOConfig(
        output_dir=recipe.run_dir,
        loss=loss.name,
        label_smoothing=loss.label_smoothing,
        **strength,
        max_length=recipe.data.max_length,
        counted_turns=recipe.data.counted_turns,
        reference=training.reference,
        reference_cache_dir=training.reference_cache_dir,
        prefix_sharing=training.prefix_sharing,
        max_tokens_per_row=training.max_tokens_per_row,
        trust_remote_code=recipe.model.trust_remote_code,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        **length,
        **order,
        **rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=training.warmup_steps,
        optim=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=training.logging_steps,
        eval_strategy="steps" if training.eval_steps else "no",
        eval_steps=training.eval_steps,
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=training.save_total_limit,
        report_to=list(training.report_to) or "none",
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_tqdm=True,
    )


def _describe_data(data: RecipeData, pairs: tuple[TokenizedPairs, TokenizedPairs | None]) -> dict[str, Any]:
    described = {}
    for name, rows, tokenized in (("train", data.train, pairs[0]), ("eval", data.eval, pairs[1])):
        if rows is not None and tokenized is not None:
            described[name] = {**tokenized.report.as_dict(), **rows.summary()}
    return described


def _length(recipe: Recipe) -> str:
    training = recipe.training
    if training.max_steps:
        return f"{training.max_steps} updates"
    return "1 epoch" if training.epochs == 1 else f"{training.epochs:g} epochs"


def _note(logs: dict[str, Any]) -> str | None:
    """A training log in a few words; None for any other log."""
    if "margin" not in logs:
        return None
    return (
        f"loss {logs['loss']:.3f} · margin {logs['margin']:+.2f} · "
        f"chosen KL {logs['chosen_forward_kl']:.2f} nats · {logs['tokens_per_second']:.0f} tokens/s"
    )
