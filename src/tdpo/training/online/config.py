"""`PPOConfig`: `transformers.TrainingArguments` plus rollouts, PPO's own numbers and the KL constraint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...kl_choices import shortest_horizon
from ...policy_gradient import KLConstraint
from ..arguments import Arguments, is_number

# Length and order are PPO's own: iterations, each with its epochs and minibatches.
REFUSED = {
    "label_smoothing_factor": "has no effect: there are no labels",
    "num_train_epochs": "has no effect: the length of a run is `iterations`",
    "max_steps": "has no effect: updates follow from iterations, ppo_epochs, rollout_size and the batch size",
    "logging_steps": "has no effect: every iteration is logged",
    "train_sampling_strategy": "has no effect: prompts are drawn with the seed",
    "dataloader_drop_last": "has no effect: every completion of a rollout is used",
}


@dataclass
class PPOConfig(Arguments):
    """Arguments of `PPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`.

    One iteration samples `rollout_size` completions and learns from them in `ppo_epochs` passes of updates;
    `per_device_train_batch_size` × `gradient_accumulation_steps` × processes completions make an update, and
    `save_steps` and `eval_steps` count updates. One line is logged an iteration.
    """

    iterations: int = field(default=16, metadata={"help": "Rollouts, each with its updates."})
    rollout_size: int = field(default=64, metadata={"help": "Completions in an iteration, over all processes."})
    samples_per_prompt: int = field(default=4, metadata={"help": "Completions of each prompt in an iteration."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest completion, in tokens."})
    rollout_batch_size: int = field(
        default=64, metadata={"help": "Sequences sampled at once on each device; changes speed and memory only."}
    )
    merge_adapter: bool = field(default=True, metadata={"help": "Fold the adapter into the weights while sampling."})
    ppo_epochs: int = field(default=4, metadata={"help": "Passes over the completions of an iteration."})
    kl: KLConstraint | dict[str, Any] = field(
        default_factory=KLConstraint, metadata={"help": "The constraint: a KLConstraint, or its fields by name."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount, in (0, 1]."})
    gae_lambda: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation, in [0, 1]."})
    clip_range: float = field(default=0.2, metadata={"help": "ε of the clipped ratio, > 0."})
    value_clip_range: float | None = field(
        default=0.2, metadata={"help": "How far a value may move before its loss is clipped; None: any."}
    )
    value_coefficient: float = field(default=0.1, metadata={"help": "Weight of the value loss, ≥ 0."})
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the critic; None is 1e-3 for a value head, 1e-5 for a critic model."}
    )
    entropy_coefficient: float = field(default=0.0, metadata={"help": "Weight of the policy's entropy, ≥ 0."})
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Advantages in units of their standard deviation, a KL in the loss with them."}
    )
    normalize_rewards: bool = field(
        default=False, metadata={"help": "Rewards around their running mean, in units of their running deviation."}
    )
    reward_clip: float | None = field(default=None, metadata={"help": "Rewards are held within ± this; None: free."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each reward function; None: 1 each."}
    )
    missing_end_penalty: float = field(
        default=0.0, metadata={"help": "Taken off the reward of a completion that was cut off, ≥ 0."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Nats a token between the policy that sampled and the one that learns; beyond 1.5 times that, the "
            "rest of an iteration's updates is skipped. None: never."
        },
    )
    show_every: int | None = field(
        default=1, metadata={"help": "Iterations between samples written to completions.jsonl; None: none."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.kl, dict):
            self.kl = KLConstraint(**self.kl)
        super().__post_init__()

    def _problems(self) -> Iterator[str]:
        for name in ("iterations", "rollout_size", "samples_per_prompt", "max_new_tokens", "rollout_batch_size"):
            yield from self._at_least_one(name)
        yield from self._at_least_one("ppo_epochs")
        for name, low, high in (("gamma", 0.0, 1.0), ("gae_lambda", -1e-12, 1.0)):
            if not (is_number(getattr(self, name)) and low < getattr(self, name) <= high):
                yield f"{name} must lie in {'(' if low == 0 else '['}0, 1], got {getattr(self, name)!r}"
        for name in ("clip_range", "value_clip_range", "value_learning_rate", "reward_clip", "target_kl"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0) and not (value is None and name != "clip_range"):
                yield f"{name} must be > 0{'' if name == 'clip_range' else ' or None'}, got {value!r}"
        for name in ("value_coefficient", "entropy_coefficient", "missing_end_penalty"):
            if not (is_number(getattr(self, name)) and getattr(self, name) >= 0):
                yield f"{name} must be a finite number ≥ 0, got {getattr(self, name)!r}"
        yield from self._refused()
        yield from self._sizes()

    def _at_least_one(self, name: str) -> Iterator[str]:
        value = getattr(self, name)
        if not (type(value) is int and value >= 1):
            yield f"{name} must be a whole number of at least 1, got {value!r}"

    def _refused(self) -> Iterator[str]:
        for name, why in REFUSED.items():
            known = type(self).__dataclass_fields__.get(name)
            if known is not None and getattr(self, name) not in (known.default, None):
                yield f"{name} {why}"
        if self.fsdp or self.deepspeed:
            yield "PPO shards no weights yet: leave fsdp and deepspeed out and start processes with accelerate launch"

    def _sizes(self) -> Iterator[str]:
        update, processes = self.update_size, self.world_size
        if self.rollout_size % update:
            yield (
                f"an update takes per_device_train_batch_size × gradient_accumulation_steps × processes = {update} "
                f"completions, which does not divide rollout_size={self.rollout_size}"
            )
        if self.rollout_size % (self.samples_per_prompt * processes):
            yield (
                f"rollout_size={self.rollout_size} completions are no whole number of prompts on each of {processes} "
                f"processes with samples_per_prompt={self.samples_per_prompt}"
            )
        constraint = self.kl
        assert isinstance(constraint, KLConstraint)
        if constraint.horizon is not None and constraint.horizon < shortest_horizon(self.rollout_size):
            yield (
                f"kl.horizon={constraint.horizon} is so short that one iteration of {self.rollout_size} completions "
                f"could change the coefficient by more than half; use at least {shortest_horizon(self.rollout_size)}"
            )

    @property
    def constraint(self) -> KLConstraint:
        assert isinstance(self.kl, KLConstraint)
        return self.kl

    @property
    def update_size(self) -> int:
        """Completions of one update, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def updates_per_epoch(self) -> int:
        return self.rollout_size // self.update_size

    @property
    def updates_per_iteration(self) -> int:
        return self.ppo_epochs * self.updates_per_epoch

    @property
    def total_updates(self) -> int:
        return self.iterations * self.updates_per_iteration

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with the constraint by its fields."""
        return {**super().to_dict(), "kl": asdict(self.constraint)}
