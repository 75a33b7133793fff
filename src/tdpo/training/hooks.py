"""What the trainers override or call inside `transformers.Trainer` without a promise that it stays: asserted at import.

An override that transformers no longer calls is silent: without `loss_is_scaled_for_ga`, PPO's loss is divided twice by
the accumulation steps.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import Trainer

from ..installation import extra_command

OLDEST_TRANSFORMERS = "5.19"
TRAINER_HOOKS = (
    "_clip_grad_norm",
    "_get_eval_sampler",
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_get_output_dir",
    "_get_train_sampler",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_maybe_log_save_evaluate",
    "_prepare_inputs",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "create_scheduler",
    "loss_is_scaled_for_ga",
)


def check_hooks(trainer: Any = Trainer) -> None:
    """Raise ImportError where the installed transformers lacks something that the trainers rely on."""
    lacking = [f"Trainer.{name}" for name in TRAINER_HOOKS if not hasattr(trainer, name)]
    if lacking:
        raise ImportError(
            f"tdpo trains with transformers from {OLDEST_TRANSFORMERS} on; the installed {transformers.__version__} "
            f"has no {', no '.join(lacking)}, and losses or checkpoints would be wrong without a word. "
            f"Install a version that has them: {extra_command('train')}"
        )


check_hooks()
