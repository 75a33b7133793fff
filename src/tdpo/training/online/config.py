"""`PPOConfig`: `transformers.TrainingArguments` plus rollouts, PPO's own numbers and the KL constraint."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...config import CRITIC_KEYS, Advantage, PPORecipe, RecipeFields, group_obstacle, why_no_weights
from ...config.training_defaults import COMPLETIONS_PER_UPDATE
from ...kl_choices import KLConstraint, shortest_horizon
from ..arguments import refuses_old_names
from .arguments import SAMPLING_KEYS, OnlineArguments

# Each field that is a key of a recipe, whose default, range and help it has. Two keys that would be taken for others
# beside transformers' arguments keep their section's name: ppo_epochs and rollout_batch_size.
FIELDS = RecipeFields(
    PPORecipe,
    {
        **SAMPLING_KEYS,
        "ppo_epochs": "ppo.epochs",
        "advantage": "ppo.advantage",
        "scale_by_group_std": "ppo.scale_by_group_std",
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
        "importance_weight_cap": "ppo.importance_weight_cap",
        "target_kl": "ppo.target_kl",
    },
    nullable={"max_new_tokens": False},
)


@refuses_old_names(rollout_size="completions")
@dataclass
class PPOConfig(OnlineArguments):
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

    ppo_epochs: int = FIELDS.field("ppo_epochs")
    kl: KLConstraint | dict[str, Any] = field(
        default_factory=KLConstraint, metadata={"help": "The constraint: a KLConstraint, or its fields by name."}
    )
    advantage: Advantage = FIELDS.field("advantage")
    scale_by_group_std: bool | None = FIELDS.field("scale_by_group_std")
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
    importance_weight_cap: float | None = FIELDS.field("importance_weight_cap")
    target_kl: float | None = FIELDS.field("target_kl")
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
        yield from self._without_effect("PPO")
        if reason := why_no_weights(self.importance_weight_cap, self.sampling_engine):
            yield f"importance_weight_cap {reason.replace('sampling.engine ', 'sampling_engine=')}"
        if not wrong:  # sizes are computed with these
            yield from self._sizes()
            yield from self._advantages()

    def _advantages(self) -> Iterator[str]:
        if self.advantage != "group" and self.scale_by_group_std is not None:
            yield 'scale_by_group_std has no effect: only advantage="group" has such a division'
        if self.advantage == "group" and self.scale_by_group_std is None:
            self.scale_by_group_std = True
        obstacle = group_obstacle(self.advantage, self.samples_per_prompt)
        if obstacle is not None:
            yield f"advantage={self.advantage} with samples_per_prompt={self.samples_per_prompt}: {obstacle}"
        if self.advantage != "gae":
            options = type(self).__dataclass_fields__
            for name in CRITIC_KEYS:
                if name in options and getattr(self, name) != options[name].default:
                    yield f"{name} has no effect with advantage={self.advantage}: there is no critic"

    def _sizes(self) -> Iterator[str]:
        update = self.update_size
        if self.completions % update:
            yield (
                f"an update takes per_device_train_batch_size × gradient_accumulation_steps × processes = {update} "
                f"completions, which does not divide completions={self.completions}"
            )
        yield from self._prompts_per_process()
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
    def passes(self) -> int:
        return self.ppo_epochs

    @property
    def learned_per_iteration(self) -> int:
        return self.completions

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with the constraint by its fields."""
        return {**super().to_dict(), "kl": asdict(self.constraint)}
