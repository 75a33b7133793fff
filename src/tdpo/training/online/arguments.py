"""The base of the configurations of trainers that learn from a model's own responses: how these are drawn."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...config import Engine, PPORecipe, Precision, RecipeFields, SamplingEngine, engine_problems
from ...models.sharded_head import FSDP2_LAUNCH
from ..arguments import Arguments, is_deepspeed

SAMPLING_KEYS = {
    "iterations": "ppo.iterations",
    "completions": "rollouts.completions",
    "samples_per_prompt": "rollouts.samples_per_prompt",
    "max_new_tokens": "rollouts.max_new_tokens",
    "rollout_batch_size": "rollouts.batch_size",
    "merge_adapter": "rollouts.merge_adapter",
    "missing_end_penalty": "rollouts.missing_end_penalty",
    "show_every": "rollouts.show_every",
    "precision": "ppo.precision",
    "sampling_engine": "sampling.engine",
    "sampling_url": "sampling.url",
    "sampling_timeout": "sampling.timeout",
    "adapter_dir": "sampling.adapter_dir",
}
# The fields that make a recipe's section `sampling`, by its keys.
ENGINE_FIELDS = {
    key.removeprefix("sampling."): name for name, key in SAMPLING_KEYS.items() if key.startswith("sampling.")
}
FIELDS = RecipeFields(PPORecipe, SAMPLING_KEYS, nullable={"max_new_tokens": False})
# Length and order follow from iterations, each with its passes and updates.
REFUSED = {
    "label_smoothing_factor": "has no effect: there are no labels",
    "max_steps": "has no effect: updates follow from iterations, passes, completions and the batch size",
    "num_train_epochs": "has no effect: the length of a run is `iterations`",
    "logging_steps": "has no effect: every iteration is logged",
    "train_sampling_strategy": "has no effect: prompts are drawn with the seed",
    "dataloader_drop_last": "has no effect: every completion of a rollout is used",
}


@dataclass
class OnlineArguments(Arguments):
    """Arguments of a trainer that samples `completions` responses an iteration and learns from them in updates.

    The fields have the names, the defaults and the ranges of a recipe's section `rollouts` (docs/recipe.md);
    `reward_weights` are the weights of a recipe's `rewards`.
    """

    iterations: int = FIELDS.field("iterations")
    completions: int = FIELDS.field("completions")
    samples_per_prompt: int = FIELDS.field("samples_per_prompt")
    max_new_tokens: int = FIELDS.field("max_new_tokens", 64)  # a recipe has that of its environment
    rollout_batch_size: int = FIELDS.field("rollout_batch_size")
    merge_adapter: bool = FIELDS.field("merge_adapter")
    missing_end_penalty: float = FIELDS.field("missing_end_penalty")
    show_every: int | None = FIELDS.field("show_every")
    precision: Precision = FIELDS.field("precision")
    sampling_engine: Engine = FIELDS.field("sampling_engine")
    sampling_url: str | None = FIELDS.field("sampling_url")
    sampling_timeout: float = FIELDS.field("sampling_timeout")
    adapter_dir: str | None = FIELDS.field("adapter_dir")
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each reward function; None: 1 each."}
    )

    @property
    def sampling(self) -> SamplingEngine:
        """What draws the responses, as a recipe's section."""
        return SamplingEngine(**{key: getattr(self, name) for key, name in ENGINE_FIELDS.items()})

    @property
    def passes(self) -> int:
        """Times that the responses of an iteration are learned from."""
        raise NotImplementedError

    @property
    def learned_per_iteration(self) -> int:
        """What updates are made of, in an iteration and over all processes: responses, or pairs of them."""
        raise NotImplementedError

    @property
    def update_size(self) -> int:
        """Of `learned_per_iteration` in one update, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one pass over the responses of an iteration."""
        return self.learned_per_iteration // self.update_size

    @property
    def updates_per_iteration(self) -> int:
        """Updates of all passes over the responses of an iteration."""
        return self.passes * self.updates_per_epoch

    @property
    def total_updates(self) -> int:
        """Updates of the whole run, where none is skipped."""
        return self.iterations * self.updates_per_iteration

    def _without_effect(self, method: str) -> Iterator[str]:
        yield from engine_problems(self, ENGINE_FIELDS)
        if self.sampling_engine == "vllm" and not self.merge_adapter:
            yield "merge_adapter=False has no effect with sampling_engine=vllm, whose server folds no adapter in"
        for name, why in REFUSED.items():
            option = type(self).__dataclass_fields__.get(name)
            if option is not None and getattr(self, name) not in (option.default, None):
                yield f"{name} {why}"
        if is_deepspeed(self):
            why = "its engine has one optimizer for one model, and knows of no critic and no updates that are skipped"
            instead = f"use FSDP2 ({FSDP2_LAUNCH})"
            yield f"DeepSpeed does not train {method}: {why}; {instead}"

    def _prompts_per_process(self) -> Iterator[str]:
        if self.completions % (self.samples_per_prompt * self.world_size):
            yield (
                f"completions={self.completions} are no whole number of prompts on each of {self.world_size} processes "
                f"with samples_per_prompt={self.samples_per_prompt}"
            )
