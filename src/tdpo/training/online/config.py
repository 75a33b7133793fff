"""`PPOConfig`: `transformers.TrainingArguments` plus rollouts, PPO's own numbers and the KL constraint."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...config import PPORecipe, Precision, RecipeFields
from ...config.training_defaults import COMPLETIONS_PER_UPDATE
from ...kl_choices import KLConstraint, shortest_horizon
from ..arguments import Arguments, refuses_old_names

# Each field that is a key of a recipe, whose default, range and help it has. Two keys that would be taken for others
# beside transformers' arguments keep their section's name: ppo_epochs and rollout_batch_size.
FIELDS = RecipeFields(
    PPORecipe,
    {
        "iterations": "ppo.iterations",
        "completions": "rollouts.completions",
        "samples_per_prompt": "rollouts.samples_per_prompt",
        "max_new_tokens": "rollouts.max_new_tokens",
        "rollout_batch_size": "rollouts.batch_size",
        "merge_adapter": "rollouts.merge_adapter",
        "missing_end_penalty": "rollouts.missing_end_penalty",
        "show_every": "rollouts.show_every",
        "ppo_epochs": "ppo.epochs",
        "gamma": "ppo.gamma",
        "gae_lambda": "ppo.gae_lambda",
        "clip_range": "ppo.clip_range",
        "value_clip_range": "ppo.value_clip_range",
        "value_coefficient": "ppo.value_coefficient",
        "value_learning_rate": "ppo.value_learning_rate",
        "entropy_coefficient": "ppo.entropy_coefficient",
        "whiten_advantages": "ppo.whiten_advantages",
        "normalize_rewards": "ppo.normalize_rewards",
        "reward_clip": "ppo.reward_clip",
        "target_kl": "ppo.target_kl",
        "precision": "ppo.precision",
    },
    nullable={"max_new_tokens": False},
)
# Length and order are PPO's own: iterations, each with its epochs and minibatches.
REFUSED = {
    "label_smoothing_factor": "has no effect: there are no labels",
    "num_train_epochs": "has no effect: the length of a run is `iterations`",
    "max_steps": "has no effect: updates follow from iterations, ppo_epochs, completions and the batch size",
    "logging_steps": "has no effect: every iteration is logged",
    "train_sampling_strategy": "has no effect: prompts are drawn with the seed",
    "dataloader_drop_last": "has no effect: every completion of a rollout is used",
}


@refuses_old_names(rollout_size="completions")
@dataclass
class PPOConfig(Arguments):
    """Arguments of `PPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`.

    One iteration samples `completions` responses and learns from them in `ppo_epochs` passes of updates;
    `per_device_train_batch_size` × `gradient_accumulation_steps` × processes responses make an update, and
    `save_steps` and `eval_steps` count updates. One line is logged an iteration.

    The fields below have the names, the defaults and the ranges of a recipe's sections `rollouts`, `kl` and `ppo`
    (docs/recipe.md); `reward_weights` are the weights of a recipe's `rewards`.

    Raises:
        TypeError: a field by the name that it had once; the new name is in the message.
        ValueError: values out of range, or without effect beside the others; all of them are named.
    """

    iterations: int = FIELDS.field("iterations")
    completions: int = FIELDS.field("completions")
    samples_per_prompt: int = FIELDS.field("samples_per_prompt")
    max_new_tokens: int = FIELDS.field("max_new_tokens", 64)  # a recipe has that of its environment
    rollout_batch_size: int = FIELDS.field("rollout_batch_size")
    merge_adapter: bool = FIELDS.field("merge_adapter")
    ppo_epochs: int = FIELDS.field("ppo_epochs")
    kl: KLConstraint | dict[str, Any] = field(
        default_factory=KLConstraint, metadata={"help": "The constraint: a KLConstraint, or its fields by name."}
    )
    gamma: float = FIELDS.field("gamma")
    gae_lambda: float = FIELDS.field("gae_lambda")
    clip_range: float = FIELDS.field("clip_range")
    value_clip_range: float | None = FIELDS.field("value_clip_range")
    value_coefficient: float = FIELDS.field("value_coefficient")
    value_learning_rate: float | None = FIELDS.field("value_learning_rate")
    entropy_coefficient: float = FIELDS.field("entropy_coefficient")
    whiten_advantages: bool = FIELDS.field("whiten_advantages")
    normalize_rewards: bool = FIELDS.field("normalize_rewards")
    reward_clip: float | None = FIELDS.field("reward_clip")
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each reward function; None: 1 each."}
    )
    missing_end_penalty: float = FIELDS.field("missing_end_penalty")
    target_kl: float | None = FIELDS.field("target_kl")
    show_every: int | None = FIELDS.field("show_every")
    precision: Precision = FIELDS.field("precision")
    per_device_train_batch_size: int = field(
        default=COMPLETIONS_PER_UPDATE,
        metadata={"help": "Completions per forward and process; with accumulation and all processes, of an update."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.kl, dict):
            self.kl = KLConstraint(**self.kl)
        super().__post_init__()

    def _problems(self) -> Iterator[str]:
        wrong = list(FIELDS.problems(self))
        yield from wrong
        yield from self._refused()
        if not wrong:  # sizes are computed with these
            yield from self._sizes()

    def _refused(self) -> Iterator[str]:
        for name, why in REFUSED.items():
            option = type(self).__dataclass_fields__.get(name)
            if option is not None and getattr(self, name) not in (option.default, None):
                yield f"{name} {why}"
        if self.fsdp or self.deepspeed:
            yield "PPO shards no weights yet: leave fsdp and deepspeed out and start processes with accelerate launch"

    def _sizes(self) -> Iterator[str]:
        update, processes = self.update_size, self.world_size
        if self.completions % update:
            yield (
                f"an update takes per_device_train_batch_size × gradient_accumulation_steps × processes = {update} "
                f"completions, which does not divide completions={self.completions}"
            )
        if self.completions % (self.samples_per_prompt * processes):
            yield (
                f"completions={self.completions} are no whole number of prompts on each of {processes} processes with "
                f"samples_per_prompt={self.samples_per_prompt}"
            )
        horizon, shortest = self.constraint.horizon, shortest_horizon(self.completions)
        if horizon is not None and horizon < shortest:
            yield (
                f"kl.horizon={horizon} is so short that one iteration of {self.completions} completions could change "
                f"the coefficient by more than half; use at least {shortest}"
            )

    @property
    def constraint(self) -> KLConstraint:
        """`kl` as it was resolved."""
        assert isinstance(self.kl, KLConstraint)
        return self.kl

    @property
    def update_size(self) -> int:
        """Responses of one update, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one pass over the responses of an iteration."""
        return self.completions // self.update_size

    @property
    def updates_per_iteration(self) -> int:
        """Updates of all passes over the responses of an iteration."""
        return self.ppo_epochs * self.updates_per_epoch

    @property
    def total_updates(self) -> int:
        """Updates of the whole run, where `target_kl` skips none."""
        return self.iterations * self.updates_per_iteration

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with the constraint by its fields."""
        return {**super().to_dict(), "kl": asdict(self.constraint)}
