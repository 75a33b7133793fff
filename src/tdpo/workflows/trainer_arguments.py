"""From a recipe to the configuration of its trainer: the one place that translates into transformers' names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config import AnyRecipe, OnlineRecipe, Optimizing, OwnResponsesRecipe, PPORecipe, Recipe, Recording
from ..training.offline.config import FIELDS as PAIR_FIELDS
from ..training.offline.config import TDPOConfig, grouping_by_length
from ..training.online.config import FIELDS as PPO_FIELDS
from ..training.online.config import PPOConfig
from ..training.online.pairs_config import FIELDS as ONLINE_FIELDS
from ..training.online.pairs_config import OnlineTDPOConfig

# Arguments of transformers' with the key that says the same in the sections `training`, `ppo` and `online`.
OPTIMIZING = {
    "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmup_steps",
    "optim": "optimizer",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": "gradient_checkpointing",
    "use_liger_kernel": "liger",
    "torch_compile": "compile",
}
RECORDING = {"save_total_limit": "save_total_limit", "report_to": "report_to"}
_EVERYWHERE = {
    "output_dir": "run_dir",
    "seed": "seed",
    "trust_remote_code": "model.trust_remote_code",
    "use_cpu": "model.device",
}


def _common_keys(section: str) -> dict[str, str]:
    return {
        **_EVERYWHERE,
        **{name: f"{section}.{key}" for name, key in {**OPTIMIZING, **RECORDING}.items()},
        "learning_rate": f"{section}.learning_rate",
    }


# Arguments of transformers' with the dotted key that sets them; where an update is split, or intervals are counted in
# other units, the key means the product (`pair_arguments`, `ppo_arguments`).
PAIR_KEYS = {
    **_common_keys("training"),
    "num_train_epochs": "training.epochs",
    "max_steps": "training.max_steps",
    "per_device_train_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.batch_size",
    "train_sampling_strategy": "training.group_by_length",
    "logging_steps": "training.logging_steps",
    "eval_steps": "training.eval_steps",
    "save_steps": "training.save_steps",
}


def _keys_of_iterations(section: str) -> dict[str, str]:
    return {
        **_common_keys(section),
        "per_device_train_batch_size": f"{section}.micro_batch_size",
        "gradient_accumulation_steps": f"{section}.minibatch_size",
        "eval_steps": f"{section}.eval_every",
        "save_steps": f"{section}.save_every",
    }


PPO_KEYS, ONLINE_KEYS = _keys_of_iterations("ppo"), _keys_of_iterations("online")


def pair_arguments(recipe: Recipe, **changes: Any) -> TDPOConfig:
    """A recipe for preferences as `TDPOConfig`, in which `changes` are other values for fields that are keys.

    Raises ValueError as `split_batch`.
    """
    training = recipe.training
    per_device, accumulation = split_batch(
        training.batch_size, training.micro_batch_size, "training.batch_size", "training.micro_batch_size", "pairs"
    )
    length: dict[str, Any] = {"max_steps": training.max_steps} if training.max_steps else {}
    if training.epochs:
        length["num_train_epochs"] = training.epochs
    return TDPOConfig(
        **{**PAIR_FIELDS.values(recipe), **changes},
        **_common(recipe, training, training, training.learning_rate),
        **_intervals(training.eval_steps, training.save_steps),
        **length,
        kl=None if recipe.loss.kl is None else recipe.loss.kl.model_dump(),
        **(grouping_by_length() if training.group_by_length else {}),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        logging_steps=training.logging_steps,
        data_seed=recipe.seed,
    )


def ppo_arguments(recipe: PPORecipe, **changes: Any) -> PPOConfig:
    """A PPO recipe as `PPOConfig`; its environment says how long responses may be where the recipe does not.

    `changes` are other values for fields that are keys. Raises ValueError as `split_batch`.
    """
    ppo = recipe.ppo
    update = ppo.minibatch_size or recipe.rollouts.completions
    per_device, accumulation = split_batch(
        update, ppo.micro_batch_size, "ppo.minibatch_size", "ppo.micro_batch_size", "completions"
    )
    fields = {**PPO_FIELDS.values(recipe), "max_new_tokens": new_tokens_of(recipe), **changes}
    updates_per_iteration = ppo.epochs * (recipe.rollouts.completions // update)
    return PPOConfig(
        **fields,
        **_common(recipe, ppo, ppo, ppo.learning_rate),
        **_intervals(ppo.eval_every, ppo.save_every, updates_per_iteration),
        kl=recipe.kl.constraint,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
    )


def online_arguments(recipe: OnlineRecipe, **changes: Any) -> OnlineTDPOConfig:
    """A recipe on pairs of own responses as `OnlineTDPOConfig`; arguments and the length of responses are as for PPO.

    Raises ValueError as `split_batch`.
    """
    online = recipe.online
    update = online.minibatch_size or recipe.pairs
    per_device, accumulation = split_batch(
        update, online.micro_batch_size, "online.minibatch_size", "online.micro_batch_size", "pairs"
    )
    return OnlineTDPOConfig(
        **{**ONLINE_FIELDS.values(recipe), "max_new_tokens": new_tokens_of(recipe), **changes},
        **_common(recipe, online, online, online.learning_rate),
        **_intervals(online.eval_every, online.save_every, online.passes * (recipe.pairs // update)),
        kl=None if recipe.loss.kl is None else recipe.loss.kl.model_dump(),
        reference_update=None if online.reference_update is None else online.reference_update.model_dump(),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
    )


def _common(
    recipe: AnyRecipe, optimizing: Optimizing, recording: Recording, learning_rate: float | None
) -> dict[str, Any]:
    """What all kinds of recipe have, under the names of `TrainingArguments`."""
    assert learning_rate is not None  # a resolved recipe has one
    return {
        "output_dir": recipe.run_dir,
        "run_name": Path(recipe.run_dir).name,  # trackers would invent one
        "seed": recipe.seed,
        "trust_remote_code": recipe.model.trust_remote_code,
        "learning_rate": learning_rate,
        **{name: getattr(optimizing, key) for name, key in OPTIMIZING.items()},
        **{name: getattr(recording, key) for name, key in RECORDING.items()},
        "report_to": list(recording.report_to) or "none",
        "use_cpu": recipe.model.device == "cpu",
        "disable_tqdm": True,
    }


def _intervals(evaluates_after: int | None, saves_after: int | None, updates: int = 1) -> dict[str, Any]:
    """When to evaluate and to save, in units of so many updates; None is never."""
    intervals: dict[str, Any] = {}
    for what, after in (("eval", evaluates_after), ("save", saves_after)):
        intervals[f"{what}_strategy"] = "no" if after is None else "steps"
        if after is not None:
            intervals[f"{what}_steps"] = after * updates
    return intervals


def split_batch(batch_size: int, micro_batch_size: int | None, key: str, micro_key: str, rows: str) -> tuple[int, int]:
    """Rows per forward and process, and the number of such forwards per update: the update is the same however split.

    Raises:
        ValueError: they cannot be divided over the processes; the keys and what rows are called are in the message.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % processes:
        raise ValueError(
            f"{key} {batch_size} counts the {rows} of all processes and cannot be divided over {processes}"
        )
    own = batch_size // processes
    micro = min(micro_batch_size or own, own)
    if own % micro:
        raise ValueError(
            f"{micro_key} {micro} does not divide the {own} {rows} that each of {processes} processes gets"
        )
    return micro, own // micro


def new_tokens_of(recipe: OwnResponsesRecipe) -> int:
    """The most tokens of a response: those of the recipe, or of its environment."""
    if recipe.rollouts.max_new_tokens is not None:
        return recipe.rollouts.max_new_tokens
    assert recipe.environment is not None  # the schema asks for one of the two
    return recipe.environment.load().max_new_tokens
