"""From a PPO recipe and a run directory to a trained model: what `tdpo ppo` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed

from ..config import PPORecipe
from ..models import load_tokenizer
from ..policy_gradient import KLConstraint
from ..recipe_data.inputs import prompts_inputs, recipe_inputs, settle_inputs
from ..recipe_data.prompts import read_usable_prompts, recipe_rewards
from ..runs import RunDirectory
from ..training.callbacks import GracefulStop, Progress, RunStatus, Say
from ..training.online.config import PPOConfig
from ..training.online.trainer import PPOTrainer
from ..training.resume import checkpoint_to_resume
from .common import last_log, load_policy, save_trained, split_batch, versions_of, warn_of_slow_dtype, without_prefix
from .model_card import ppo_model_card

logger = logging.getLogger(__name__)


def train_ppo(
    recipe: PPORecipe,
    run: RunDirectory,
    *,
    resume: bool = False,
    last_good: bool = False,
    accept_changes: bool = False,
    progress: Progress | None = None,
    say: Say = logger.info,
    callbacks: Sequence[TrainerCallback] = (),
    judge_held_out: bool = True,
) -> dict[str, Any]:
    """Train as the recipe says and leave model, metrics, completions and model card in the run directory.

    Prompts and rewards are read and checked before the model's weights load. The first Ctrl-C (or SIGTERM) lets the
    update under way finish, writes a checkpoint and raises KeyboardInterrupt; a second one stops at once.

    Args:
        recipe: the resolved recipe.
        run: its directory, as `RunDirectory.training` gives it.
        resume: continue from the newest complete checkpoint, or from the start where there is none.
        last_good: where that is damaged, continue from the newest one that is not.
        accept_changes: continue also with other data, weights or functions than the checkpoint was trained with.
        progress: called after every update.
        say: told what is being done, in sentences.
        callbacks: further transformers callbacks.
        judge_held_out: answer the held-out prompts at the end; False where an evaluation follows that does it anyway.

    Returns:
        {"steps", "seconds", "train": last logged numbers, "eval": held-out numbers or None, "model": path}
    """
    if recipe.ppo.num_threads:
        torch.set_num_threads(recipe.ppo.num_threads)
    checkpoint = checkpoint_to_resume(run, last_good=last_good, say=say) if resume else None
    tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=recipe.model.trust_remote_code)
    train_prompts, held_out, described = read_usable_prompts(recipe, tokenizer)
    if checkpoint is not None:
        inputs = {**recipe_inputs(recipe), **prompts_inputs(train_prompts, held_out)}
        settle_inputs(run, checkpoint, inputs, accept=accept_changes, say=say)
    run.write_json("data.json", described)
    for name, part in described.items():
        if part["skipped"]:
            say(f"{part['skipped']} broken rows of the {name} prompts were left out; data.json names them")
    rewards = recipe_rewards(recipe, tokenizer)
    warn_of_slow_dtype(recipe.model.dtype, say)
    set_seed(recipe.seed)
    stop = GracefulStop(say)
    trainer = PPOTrainer(
        load_policy(recipe.model),
        rewards,
        args=ppo_arguments(recipe),
        train_dataset=train_prompts,
        eval_dataset=held_out or None,
        processing_class=tokenizer,
        callbacks=[stop, RunStatus(run, progress, _note), *callbacks],
        ref_model=recipe.model.reference,
        value_model=recipe.ppo.value_model,
    )
    trainer.inputs, trainer.accept_changes = recipe_inputs(recipe), accept_changes
    trainer.remove_callback(PrinterCallback)  # the caller's progress shows what it would print
    say(trainer.describe())
    say(f"Continuing from {checkpoint}." if checkpoint else f"{len(train_prompts)} prompts.")
    with stop.listening():
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stop.raise_if_asked()
    judged = bool(held_out) and judge_held_out
    numbers = {"train": last_log(trainer), "eval": without_prefix(trainer.evaluate() if judged else None)}
    card = ppo_model_card(recipe, len(train_prompts), numbers["train"] or {}, numbers["eval"], versions_of(run))
    place = save_trained(trainer, run, card)
    return {"steps": trainer.state.global_step, "seconds": result.metrics["train_runtime"], "model": place, **numbers}


def ppo_arguments(recipe: PPORecipe) -> PPOConfig:
    """The recipe as `PPOConfig`: batches split over processes and micro-batches without changing the update."""
    ppo, rollouts, kl = recipe.ppo, recipe.rollouts, recipe.kl
    update = ppo.minibatch_size or rollouts.completions
    per_device, accumulation = split_batch(
        update, ppo.micro_batch_size, "ppo.minibatch_size", "ppo.micro_batch_size", "completions"
    )
    updates = ppo.epochs * (rollouts.completions // update)
    return PPOConfig(
        output_dir=recipe.run_dir,
        iterations=ppo.iterations,
        rollout_size=rollouts.completions,
        samples_per_prompt=rollouts.samples_per_prompt,
        max_new_tokens=new_tokens_of(recipe),
        rollout_batch_size=rollouts.batch_size,
        merge_adapter=rollouts.merge_adapter,
        missing_end_penalty=rollouts.missing_end_penalty,
        show_every=rollouts.show_every,
        kl=KLConstraint(kl.direction, kl.form, kl.place, kl.controller, kl.coefficient, kl.target, kl.horizon),
        ppo_epochs=ppo.epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        value_clip_range=ppo.value_clip_range,
        value_coefficient=ppo.value_coefficient,
        value_learning_rate=ppo.value_learning_rate,
        entropy_coefficient=ppo.entropy_coefficient,
        whiten_advantages=ppo.whiten_advantages,
        normalize_rewards=ppo.normalize_rewards,
        reward_clip=ppo.reward_clip,
        target_kl=ppo.target_kl,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=ppo.learning_rate or (1e-6 if recipe.model.lora is None else 1e-4),
        lr_scheduler_type=ppo.scheduler,
        warmup_steps=ppo.warmup_steps,
        optim=ppo.optimizer,
        weight_decay=ppo.weight_decay,
        max_grad_norm=ppo.max_grad_norm,
        gradient_checkpointing=ppo.gradient_checkpointing,
        eval_strategy="steps" if ppo.eval_every else "no",
        eval_steps=(ppo.eval_every or 1) * updates,
        save_strategy="steps" if ppo.save_every else "no",
        save_steps=(ppo.save_every or 1) * updates,
        save_total_limit=ppo.save_total_limit,
        report_to=list(ppo.report_to) or "none",
        trust_remote_code=recipe.model.trust_remote_code,
        seed=recipe.seed,
        disable_tqdm=True,
    )


def new_tokens_of(recipe: PPORecipe) -> int:
    """The most tokens of an answer: those of the recipe, or of its environment."""
    if recipe.rollouts.max_new_tokens is not None:
        return recipe.rollouts.max_new_tokens
    assert recipe.environment is not None  # the schema asks for one of the two
    return recipe.environment.load().max_new_tokens


def _note(logs: dict[str, Any]) -> str | None:
    """A training log in a few words; None for any other log."""
    if "penalized_reward_mean" not in logs:
        return None
    return (
        f"reward {logs['reward_mean']:.3f} · KL {logs['reverse_kl']:.2f} reverse, {logs['forward_kl']:.2f} forward · "
        f"coefficient {logs['kl_coefficient']:.3g}"
    )
