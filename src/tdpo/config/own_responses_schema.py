"""What the recipes share whose model learns from its own responses: prompts, rewards and how responses are drawn."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from ._sections import NonNegativeFloat, PositiveInt, Section, Seed, Text, key_problems, why_no_divisor
from .environment_schema import EnvironmentChoice
from .model_schema import Model
from .sampling_engine import SamplingEngine, why_not_handed_over
from .training_defaults import trains_adapter


class Prompts(Section):
    """Prompts of your own, with `rewards` instead of an environment."""

    train: Text
    """File (JSONL, JSON, Parquet, CSV; a .txt holds a prompt a line), saved dataset folder, or hub name with a column
    `prompt`: plain text, or messages. `tools` and `chat_template_kwargs` beside messages reach the chat template, other
    columns the reward functions. Of several splits, train is read."""
    eval: Text | None = None
    """Where the held-out prompts are, in the same formats (of several splits, test); null holds none."""
    on_bad_rows: Literal["error", "skip"] = "error"
    """What a row that fails validation does: stop before any work, or be left out and counted."""


class Reward(Section):
    """One part of the reward of a response; the reward is their weighted sum. An entry has `function` or `model`."""

    function: Text | None = None
    """`file.py:name` or `package.module:name` of a function that takes prompts=, completions= and every column of
    the prompts by its name, and returns a number for each completion."""
    model: Text | None = None
    """Name or folder of a sequence-classification model with one output, the reward."""
    weight: float = 1.0
    """What it is multiplied by before the parts are added up."""

    @field_validator("model")
    @classmethod
    def _one_of_both(cls, model: str | None, info: ValidationInfo) -> str | None:
        if "function" not in info.data:
            return model
        has_function = info.data["function"] is not None
        if has_function and model is not None:
            raise ValueError("is given together with function; a reward is one of the two, add another entry")
        if not has_function and model is None:
            raise ValueError("is null, and so is function; a reward needs one of the two")
        return model

    @field_validator("weight")
    @classmethod
    def _has_a_weight(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("0 leaves this reward without effect; remove the entry, or give it a weight")
        return weight


class Rollouts(Section):
    """The responses of one iteration, drawn from the policy as it is then, at temperature 1."""

    completions: PositiveInt = 64
    """Responses per iteration, over all processes."""
    samples_per_prompt: PositiveInt = 4
    """Responses drawn for each prompt, a divisor of `rollouts.completions`."""
    prompts: PositiveInt | None = None
    """So many of the prompts to train on, drawn with `seed`, which are then the only ones; null takes all."""
    max_new_tokens: PositiveInt | None = None
    """Longest response, in tokens; null is the environment's own, and not allowed with `prompts`."""
    batch_size: PositiveInt = 64
    """Sequences generated at once, with `sampling.engine` vllm requests under way; changes speed and memory only."""
    missing_end_penalty: NonNegativeFloat = 0.0
    """Taken off the reward of a response that was cut off at `rollouts.max_new_tokens`."""
    merge_adapter: bool = True
    """Fold the adapter into the weights while sampling, which is faster; no effect when all weights are trained."""
    show_every: PositiveInt | None = 1
    """Iterations between samples written to completions.jsonl; null writes none."""

    @field_validator("samples_per_prompt")
    @classmethod
    def _divides_the_completions(cls, samples: int, info: ValidationInfo) -> int:
        reason = why_no_divisor(samples, "rollouts.completions", info.data.get("completions"))
        if reason is not None:
            raise ValueError(reason)
        return samples


class IterationIntervals(Section):
    """How often something is done, in iterations."""

    eval_every: PositiveInt | None = None
    """Iterations between two evaluations on the held-out prompts; null evaluates none while training."""
    save_every: PositiveInt | None = 1
    """Iterations between two checkpoints; null writes none, and an interrupted run then starts over."""


class OwnResponses(Section):
    """The beginning of a recipe of this kind. Paths are relative to the folder the command is started in."""

    run_dir: Text
    """Folder that the run is written to: recipe, metrics, completions, checkpoints, model, evaluation."""
    seed: Seed = 0
    """Seed of the order of prompts, sampling, initialisation of adapters (and of PPO's value head), and dropout."""
    model: Model = Model()
    environment: EnvironmentChoice | None = None
    """Null where the recipe has `prompts` and `rewards` of its own."""
    prompts: Prompts | None = None
    """Null where an environment has the prompts."""
    rewards: list[Reward] | None = None
    """Null where an environment has the reward."""
    sampling: SamplingEngine = SamplingEngine()

    @field_validator("sampling")
    @classmethod
    def _samples_what_is_trained(cls, sampling: SamplingEngine, info: ValidationInfo) -> SamplingEngine:
        model = info.data.get("model")
        if model is not None:
            has_adapter = trains_adapter(model.name, model.lora is not None)
            is_quantized = model.quantization is not None
            reason = why_not_handed_over(sampling.engine, has_adapter=has_adapter, is_quantized=is_quantized)
            if reason is not None:
                raise key_problems(("sampling.engine", reason))
        return sampling


def source_problems(
    environment: EnvironmentChoice | None,
    prompts: Prompts | None,
    rewards: list[Reward] | None,
    *,
    learns_rewards: bool = True,
) -> list[tuple[str, str]]:
    """What is wrong with the sources of prompts and reward: an environment, or both of the others.

    Without `learns_rewards`, prompts alone will do.
    """
    if environment is not None:
        reason = "has no effect beside environment, which has prompts and a reward of its own; remove one of the two"
        return [(key, reason) for key, value in (("prompts", prompts), ("rewards", rewards)) if value is not None]
    if rewards is not None and not rewards:
        return [("rewards", "is an empty list; name at least one function or model")]
    if prompts is None and rewards is None:
        reason = "is missing; name one (environment.name: sentiment), or give prompts together with rewards"
        return [("environment", reason)]
    if prompts is None:
        return [
            ("prompts", "is missing: rewards judge responses to prompts; set prompts.train, or choose an environment")
        ]
    if rewards is None and learns_rewards:
        reason = "is missing: prompts come without a reward; name a function or a model, or choose an environment"
        return [("rewards", reason)]
    return []


def why_not_evaluated(every: int | None, above: dict[str, Any]) -> str | None:
    prompts, environment = above.get("prompts"), above.get("environment")
    if every is not None and environment is not None and not environment.holds_out:
        return "has no effect without held-out prompts; set environment.held_out"
    if every is None or prompts is None or prompts.eval is not None:
        return None
    return "has no effect without held-out prompts; set prompts.eval"


def rollout_problems(rollouts: Rollouts, above: dict[str, Any]) -> list[tuple[str, str]]:
    """What in the section `rollouts` does not fit the sections `above` it."""
    problems, model = [], above.get("model")
    if rollouts.max_new_tokens is None and above.get("prompts") is not None:
        reason = "is missing: prompts of your own name no length; set the longest response, in tokens"
        problems.append(("rollouts.max_new_tokens", reason))
    if not rollouts.merge_adapter and model is not None and model.lora is None:
        reason = "has no effect with model.lora null: there is no adapter to fold; remove it"
        problems.append(("rollouts.merge_adapter", reason))
    sampling = above.get("sampling")
    if not rollouts.merge_adapter and sampling is not None and sampling.is_server:
        reason = "has no effect with sampling.engine vllm: the server keeps adapter and weights apart; remove it"
        problems.append(("rollouts.merge_adapter", reason))
    return problems
