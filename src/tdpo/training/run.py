"""From a recipe and a run directory to a trained model: what `tdpo train` does."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from ..batches import TokenizedPairs
from ..config import Recipe
from ..environments import load_environment
from ..models import LoraSettings, add_lora, has_no_units_for, load_causal_lm, load_tokenizer, model_facts
from ..runs import RunDirectory
from .config import TDPOConfig, grouping_by_length
from .data import RecipeData, read_data, tokenize_data
from .model_card import model_card
from .offline import TDPOTrainer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]  # updates done, updates in all, a note
Say = Callable[[str], None]


def train(
    recipe: Recipe,
    run: RunDirectory,
    *,
    resume: bool = False,
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
        progress: called after every update.
        cache_progress: called while a reference cache is made, with pairs done and in all.
        say: told what is being done, in sentences.
        callbacks: further transformers callbacks.

    Returns:
        {"steps", "seconds", "train": last logged numbers, "eval": held-out numbers or None, "model": path}
    """
    if recipe.training.num_threads:
        torch.set_num_threads(recipe.training.num_threads)
    checkpoint = run.checkpoints().newest if resume else None
    if recipe.environment is not None:
        load_environment(recipe.environment.name)  # training does not use it, but evaluating the run will
    data = read_data(recipe)
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    facts = model_facts(recipe.model.name, tokenizer, trust_remote_code=recipe.model.trust_remote_code)
    pairs = tokenize_data(data, tokenizer, facts.max_length(recipe.data.max_length), facts.end_token_ids)
    described = _describe_data(data, pairs)
    run.write_json("data.json", described)
    for sentence in (s for part in pairs if part for s in part.report.warnings()):
        say(sentence)
    if has_no_units_for(recipe.model.dtype):
        say(
            f"This CPU has no units for {recipe.model.dtype}: training takes several times as long as with "
            "model.dtype=float32."
        )
    set_seed(recipe.seed)
    stop = GracefulStop(say)
    trainer = TDPOTrainer(
        _policy(recipe),
        ref_model=recipe.model.reference,
        args=trainer_arguments(recipe),
        train_dataset=pairs[0],
        eval_dataset=pairs[1],
        processing_class=tokenizer,
        callbacks=[stop, RunStatus(run, progress), *callbacks],
        say=say,
        cache_progress=cache_progress,
    )
    trainer.remove_callback(PrinterCallback)  # the caller's progress shows what it would print
    say(trainer.describe())
    say(f"Continuing from {checkpoint}." if checkpoint else f"{len(pairs[0].pairs)} pairs, {_length(recipe)}.")
    with stop.listening():
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked:
        raise KeyboardInterrupt
    held_out = trainer.evaluate() if pairs[1] is not None else None
    return _finish(recipe, run, trainer, described, result.metrics, held_out)


def trainer_arguments(recipe: Recipe) -> TDPOConfig:
    """The recipe as `TDPOConfig`: batches split over processes and micro-batches without changing the update."""
    training, loss = recipe.training, recipe.loss
    per_device, accumulation = _split_batch(training.batch_size, training.micro_batch_size)
    alpha: dict[str, Any] = {} if loss.alpha is None else {"alpha": loss.alpha}
    length: dict[str, Any] = {"max_steps": training.max_steps} if training.max_steps else {}
    if training.epochs:
        length["num_train_epochs"] = training.epochs
    order = grouping_by_length() if training.group_by_length else {}
    rate: dict[str, Any] = {"learning_rate": training.learning_rate}
    return TDPOConfig(
        output_dir=recipe.run_dir,
        loss=loss.name,
        beta=loss.beta,
        label_smoothing=loss.label_smoothing,
        **alpha,
        max_length=recipe.data.max_length,
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


def _split_batch(batch_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Pairs per forward and process, and the number of such forwards per update."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise ValueError(
            f"training.batch_size {batch_size} counts the pairs of all processes and cannot be divided over {processes}"
        )
    own = batch_size // processes
    micro = min(micro_batch_size or own, own)
    if own % micro:
        raise ValueError(
            f"training.micro_batch_size {micro} does not divide the {own} pairs that each of {processes} processes gets"
        )
    return micro, own // micro


def _policy(recipe: Recipe) -> Any:
    lora = recipe.model.lora
    model = load_causal_lm(
        recipe.model.name,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        trainable=lora is None,
    )
    if lora is None:
        return model
    return add_lora(model, LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.targets))


def _describe_data(data: RecipeData, pairs: tuple[TokenizedPairs, TokenizedPairs | None]) -> dict[str, Any]:
    described = {}
    for name, rows, tokenized in (("train", data.train, pairs[0]), ("eval", data.eval, pairs[1])):
        if rows is not None and tokenized is not None:
            described[name] = {**tokenized.report.as_dict(), **rows.summary()}
    return described


def _length(recipe: Recipe) -> str:
    training = recipe.training
    return f"{training.max_steps} updates" if training.max_steps else f"{training.epochs:g} epochs"


def _finish(
    recipe: Recipe,
    run: RunDirectory,
    trainer: TDPOTrainer,
    described: dict[str, Any],
    summary: dict[str, float],
    held_out: dict[str, float] | None,
) -> dict[str, Any]:
    """Save the model whole beside its place and move it there; write the card."""
    logged = [line for line in trainer.state.log_history if "loss" in line]
    numbers = {"train": logged[-1] if logged else {}, "eval": _without_prefix(held_out)}
    staging, place = run.path / ".model-being-saved", run.path / "model"
    trainer.save_model(str(staging))
    if trainer.args.should_save:
        (staging / "training_args.bin").unlink(missing_ok=True)
        environment = run.read_json("environment.json") or {}
        card = model_card(recipe, described, numbers["train"] or {}, numbers["eval"], environment.get("versions", {}))
        (staging / "README.md").write_text(card, encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        staging.rename(place)
    trainer.accelerator.wait_for_everyone()
    return {"steps": trainer.state.global_step, "seconds": summary["train_runtime"], "model": Path(place), **numbers}


def _without_prefix(metrics: dict[str, float] | None) -> dict[str, float] | None:
    return None if metrics is None else {k.removeprefix("eval_"): v for k, v in metrics.items()}


class RunStatus(TrainerCallback):
    """Keeps status.json and the caller's progress bar at the current update."""

    def __init__(self, run: RunDirectory, progress: Progress | None) -> None:
        self.run, self.progress = run, progress
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._show(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "margin" in logs:
            self.note = (
                f"loss {logs['loss']:.3f} · margin {logs['margin']:+.2f} · "
                f"chosen KL {logs['chosen_forward_kl']:.2f} nats · {logs['tokens_per_second']:.0f} tokens/s"
            )
            self._show(state)

    def _show(self, state: Any) -> None:
        self.run.set_status("running", step=state.global_step, max_steps=state.max_steps)
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, self.note)


class GracefulStop(TrainerCallback):
    """The first Ctrl-C or SIGTERM asks for a checkpoint after the update under way; a second one stops at once."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked = False

    def listening(self) -> _Handlers:
        """A context in which the signals come here."""
        return _Handlers(self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("Stopping after this update, with a checkpoint. Ctrl-C again stops at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True


class _Handlers:
    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self.handler = handler
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[signum] = signal.signal(signum, self.handler)
            except ValueError:  # only the main thread may set handlers; elsewhere signals stay as they are
                return

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
