"""What the sections `training` and `ppo` have in common: how weights are updated, and what a run keeps and reports."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from ._sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "rmsprop", "adafactor", "sgd"]
Precision = Literal["auto", "float32", "bfloat16-mixed", "float16-mixed", "bfloat16"]
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "comet_ml", "clearml", "swanlab"]


def why_no_precision(precision: str, dtype: str, quantized: bool) -> str | None:
    """Why weights cannot be trained in `precision` if `model.dtype` loads them in `dtype`; None if they can.

    `quantized`: they are quantised, which no precision can hold them in.
    """
    if quantized and precision != "auto":
        return (
            f"{precision} cannot hold weights that model.quantization puts into few bits; leave it auto, and let "
            "model.dtype say what is computed in"
        )
    held = "bfloat16" if precision == "bfloat16" else "float32"
    if "auto" in (precision, dtype) or dtype == held:
        return None
    return f"{precision} holds weights in {held}, and model.dtype loads them in {dtype}; remove one of the two keys"


class Optimizing(Section):
    """How gradients become updates, whatever the method."""

    scheduler: Scheduler = "linear"
    """Course of the learning rate: falling to zero in a line or a half cosine, or constant."""
    warmup_steps: NonNegativeFloat = 0.0
    """Updates over which the learning rate rises from zero; below 1: a share of all updates."""
    optimizer: Optimizer = "adamw_torch"
    """Optimiser, by its transformers name (the 8-bit ones need bitsandbytes)."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients of a larger norm are scaled down to it."""
    precision: Precision = "auto"
    """What is computed in. `float32`: weights and their products. `bfloat16-mixed`, `float16-mixed`: weights float32,
    products in 16 bits by autocast. `bfloat16`: both, where small updates of trained weights are rounded away. `auto`:
    trained weights float32, with bfloat16 products if the model was saved in 16 bits and they are measured to be faster
    here; with adapters, the base in the dtype that it was loaded in. Adapters are kept in float32 in any case; on a GPU
    they are multiplied in bfloat16 where the other products are."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, about a third more time."""
    liger: bool = False
    """Compute norms, gated layers and rotary positions of policy and reference by Liger's kernels, on a GPU (needs
    liger-kernel). Refused where Liger has none for the architecture, or they give other hidden states."""
    compile: bool = False
    """Compile the policy's body with torch.compile: faster steps on a GPU after a first one of a minute or two. Needs a
    C++ compiler."""

    @field_validator("warmup_steps")
    @classmethod
    def _constant_has_no_warmup(cls, steps: float, info: ValidationInfo) -> float:
        if steps and info.data.get("scheduler") == "constant":
            raise ValueError("has no effect with scheduler constant; use constant_with_warmup")
        if steps >= 1 and steps != int(steps):
            raise ValueError(f"is {steps:g}; from 1 on it counts updates and must be whole")
        return steps


class Recording(Section):
    """What a run keeps and reports, and the threads that it uses, whatever the method."""

    # The key that says how often checkpoints are written, by its full name. It stands before those of this class.
    SAVES_AFTER: ClassVar[str]

    save_total_limit: PositiveInt | None = None
    """Newest checkpoints kept; null is 2."""
    report_to: list[Tracker] = []  # noqa: RUF012  # pydantic copies it
    """Trackers that get the metrics too; metrics.jsonl is always written."""
    num_threads: PositiveInt | None = None
    """CPU threads for torch; null leaves torch's own choice."""

    @field_validator("save_total_limit")
    @classmethod
    def _limit_needs_checkpoints(cls, limit: int | None, info: ValidationInfo) -> int | None:
        saves_after = cls.SAVES_AFTER.rpartition(".")[2]
        if saves_after not in info.data:  # it is wrong itself, which is said elsewhere
            return limit
        if info.data[saves_after] is None:
            if limit is not None:
                raise ValueError(f"has no effect without checkpoints ({cls.SAVES_AFTER} is null); remove it")
            return None
        return 2 if limit is None else limit
