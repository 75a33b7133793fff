"""The recipe of a PPO run, as typed sections; its section `ppo` is what makes a recipe one.

The text under each field is its documentation. A null whose meaning depends on another key is resolved, as in `schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..kl_choices import (
    KLConstraint,
    KLController,
    KLDirection,
    KLForm,
    KLPlace,
    coefficient_obstacle,
    controller_obstacle,
    kl_obstacle,
    shortest_horizon,
)
from ._sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Text, key_problems, why_no_divisor
from .optimization import Optimizing, Recording, why_no_precision
from .own_responses_schema import (
    IterationIntervals,
    OwnResponses,
    Reward,
    Rollouts,
    rollout_problems,
    source_problems,
    why_not_evaluated,
)
from .schema import Evaluation
from .training_defaults import COMPLETIONS_PER_UPDATE, VALUE_LEARNING_RATES, learning_rate, trains_adapter
from .training_defaults import PPO as PPO_METHOD

Advantage = Literal["gae", "rloo", "group"]
# Keys of `ppo` that say how the critic learns and how advantages are made of its values.
CRITIC_KEYS = ("value_learning_rate", "value_model", "gamma", "gae_lambda", "value_clip_range", "value_coefficient")


def group_obstacle(advantage: Advantage, samples_per_prompt: int) -> str | None:
    """Why this advantage cannot be computed from so many responses to a prompt; None where it can."""
    if advantage == "gae" or samples_per_prompt >= 2:
        return None
    return f"{advantage} compares the responses to one prompt, and there is one to each; draw at least two"


def why_no_weights(cap: float | None, engine: str) -> str | None:
    """Why tokens get no importance weights with this engine; None where they do, or none are asked for."""
    if cap is None or engine == "vllm":
        return None
    return "has no effect with sampling.engine built-in, which draws from the policy itself; remove it"


class KL(Section):
    """What ties the policy to the reference: reverse is KL(policy‖reference), forward is KL(reference‖policy)."""

    direction: KLDirection = KLConstraint.direction
    """Which of the two KLs is held small."""
    form: KLForm = KLConstraint.form
    """`sampled` estimates it from the tokens that were drawn; `exact` sums over the whole vocabulary."""
    place: KLPlace = KLConstraint.place
    """`reward` takes it off the reward of each token (reverse and sampled only); `loss` adds it to the loss."""
    controller: KLController = KLConstraint.controller
    """`fixed` keeps the coefficient; `adaptive` moves it so that the KL approaches `kl.target`, over many thousands of
    responses; `dual` does so within tens of updates: after every update where the KL is in the loss, after every
    iteration where it is in the reward."""
    coefficient: NonNegativeFloat = KLConstraint.coefficient
    """Weight of the KL; where a controller moves it, a first guess."""
    target: PositiveFloat | None = None
    """KL that the controller holds, in nats per sequence; null is 6."""
    horizon: PositiveInt | None = None
    """Completions over which the adaptive controller corrects; null is 10000. Smaller corrects faster."""
    target_direction: KLDirection | None = None
    """Which exact KL along the policy's responses is held at the target, so that runs with different constraints meet
    at equal KLs; null is that of the constraint."""

    @field_validator("place")
    @classmethod
    def _has_the_gradient_of_its_name(cls, place: KLPlace, info: ValidationInfo) -> KLPlace:
        direction, form = info.data.get("direction"), info.data.get("form")
        if direction is None or form is None:
            return place
        obstacle = kl_obstacle(direction, form, place)
        if obstacle is not None:
            raise ValueError(f"{place} is refused with direction {direction} and form {form}: {obstacle}")
        return place

    @field_validator("coefficient")
    @classmethod
    def _adaptive_needs_a_start(cls, coefficient: float, info: ValidationInfo) -> float:
        obstacle = coefficient_obstacle(coefficient, info.data.get("controller", "fixed"))
        if obstacle is not None:
            raise ValueError(obstacle)
        return coefficient

    @field_validator("target", "horizon", "target_direction")
    @classmethod
    def _belongs_to_a_controller(cls, value: Any, info: ValidationInfo) -> Any:
        controller = info.data.get("controller")
        if controller is None:  # it is wrong itself, which is said elsewhere
            return value
        obstacle = controller_obstacle(value, controller, str(info.field_name))
        if obstacle is not None:
            raise ValueError(obstacle)
        if value is None and controller != "fixed" and info.field_name == "target":
            return KLConstraint.DEFAULT_TARGET
        if value is None and controller == "adaptive" and info.field_name == "horizon":
            return KLConstraint.DEFAULT_HORIZON
        return value

    @property
    def constraint(self) -> KLConstraint:
        """What PPO is given."""
        return KLConstraint(**self.model_dump())


class _Objective(Section):
    """How often and how an iteration's responses are learned from."""

    iterations: PositiveInt = 16
    """Times that responses are drawn and learned from."""
    epochs: PositiveInt = 4
    """Passes over the completions of one iteration."""
    minibatch_size: PositiveInt | None = COMPLETIONS_PER_UPDATE
    """Completions per update, over all processes, a divisor of `rollouts.completions`; null is all of them."""
    micro_batch_size: PositiveInt | None = None
    """Completions per forward, a divisor of `ppo.minibatch_size`; smaller needs less memory and gives the same update.
    Null is the whole minibatch at once."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of the policy; null is 1e-4 with adapters and 1e-6 when all weights are trained."""
    advantage: Advantage = "gae"
    """What a response is compared with: `gae` with the values of a critic, `rloo` with the mean reward of the prompt's
    other responses, `group` with the mean of all of them. The last two have no critic."""
    scale_by_group_std: bool | None = None
    """With `group`: divide by the standard deviation of the prompt's rewards, as GRPO does, which lets prompts whose
    rewards hardly differ count as much as others; null is true with `group`."""
    value_learning_rate: PositiveFloat | None = None
    """Peak learning rate of the critic; null is 1e-3 for a value head and 1e-5 with `ppo.value_model`."""
    value_model: Text | None = None
    """Name or folder of a model that becomes a critic of its own; null is a value head on the policy's body."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of later rewards, per token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Generalised advantage estimation: 0 trusts the critic after one token, 1 the rewards to the end."""
    clip_range: PositiveFloat = 0.2
    """How far the ratio of new and old token probability may leave 1 before its gradient stops."""
    importance_weight_cap: PositiveFloat | None = None
    """With `sampling.engine` vllm: the policy's loss of each token is weighted by min(π/μ, this), with π the policy
    before the iteration's updates and μ what the server drew from (truncated importance sampling; Ionides 2008, Yao et
    al. 2025). Null leaves the difference uncorrected."""
    value_clip_range: PositiveFloat | None = 0.2
    """How far a value may leave the one that was predicted while sampling before its gradient stops; null: any."""
    value_coefficient: NonNegativeFloat = 0.1
    """Weight of the critic's loss beside the policy's."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the policy's entropy, in nats a token, which is rewarded."""
    whiten_advantages: bool = True
    """Give the advantages of an iteration mean 0 and standard deviation 1; a KL in the loss is scaled with them."""
    normalize_rewards: bool = False
    """Give the rewards mean 0 and standard deviation 1, as they were over the run so far."""
    reward_clip: PositiveFloat | None = None
    """Rewards beyond ± this are set to it; null leaves them as they are."""
    target_kl: PositiveFloat | None = None
    """KL between the policy that sampled and the one that learns, in nats a token: beyond 1.5 times it, the rest of
    the iteration's updates is skipped. Null skips none."""

    @field_validator("scale_by_group_std")
    @classmethod
    def _belongs_to_group(cls, scale: bool | None, info: ValidationInfo) -> bool | None:
        if "advantage" not in info.data:  # it is wrong itself, which is said elsewhere
            return scale
        if info.data["advantage"] != "group":
            if scale is not None:
                raise ValueError("has no effect: only ppo.advantage: group has such a division; remove it")
            return None
        return True if scale is None else scale

    @field_validator(*CRITIC_KEYS)
    @classmethod
    def _belongs_to_the_critic(cls, value: Any, info: ValidationInfo) -> Any:
        advantage = info.data.get("advantage", "gae")
        if advantage != "gae" and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"has no effect with ppo.advantage {advantage}, which has no critic; remove it")
        return value


# Inherited keys come in the order of the classes from right to left: that of the file, in which checks look back.
class PPO(Recording, IterationIntervals, Optimizing, _Objective):
    """The optimisation. An iteration draws `rollouts.completions` responses and learns from them in several passes.
    Every key has a default: `ppo: {}` is enough to make a recipe one for `tdpo ppo`."""

    SAVES_AFTER = "ppo.save_every"


class PPORecipe(OwnResponses):
    """One PPO run. Paths are relative to the folder the command is started in."""

    kl: KL = KL()
    rollouts: Rollouts = Rollouts()
    ppo: PPO
    evaluation: Evaluation = Evaluation()

    OPTIMIZATION: ClassVar[str] = "ppo"

    @property
    def optimization(self) -> PPO:
        """The section `OPTIMIZATION`."""
        return self.ppo

    @property
    def updates(self) -> int:
        """The updates of the whole run, where `ppo.target_kl` skips none."""
        a_pass = self.rollouts.completions // (self.ppo.minibatch_size or self.rollouts.completions)
        return self.ppo.iterations * self.ppo.epochs * a_pass

    @field_validator("rewards")
    @classmethod
    def _one_source(cls, rewards: list[Reward] | None, info: ValidationInfo) -> list[Reward] | None:
        if not {"environment", "prompts"} <= info.data.keys():
            return rewards
        problems = list(source_problems(info.data["environment"], info.data["prompts"], rewards))
        if problems:
            raise key_problems(*problems)
        return rewards

    @field_validator("rollouts")
    @classmethod
    def _fits_what_is_above(cls, rollouts: Rollouts, info: ValidationInfo) -> Rollouts:
        problems = rollout_problems(rollouts, info.data)
        kl = info.data.get("kl")
        shortest = shortest_horizon(rollouts.completions)
        if kl is not None and kl.horizon is not None and kl.horizon < shortest:
            reason = (
                f"{kl.horizon} is so short that one iteration of {rollouts.completions} completions "
                f"(rollouts.completions) could change the coefficient by more than half; use at least {shortest}"
            )
            problems.append(("kl.horizon", reason))
        if problems:
            raise key_problems(*problems)
        return rollouts

    @field_validator("ppo")
    @classmethod
    def _fits_the_other_sections(cls, ppo: PPO, info: ValidationInfo) -> PPO:
        rollouts, model, sampling = (info.data.get(name) for name in ("rollouts", "model", "sampling"))
        completions = rollouts.completions if rollouts else None
        minibatch = completions if ppo.minibatch_size is None else ppo.minibatch_size
        reasons = {
            "ppo.minibatch_size": why_no_divisor(minibatch, "rollouts.completions", completions),
            "ppo.micro_batch_size": why_no_divisor(ppo.micro_batch_size, "ppo.minibatch_size", minibatch),
            "ppo.eval_every": why_not_evaluated(ppo.eval_every, info.data),
            "ppo.advantage": group_obstacle(ppo.advantage, rollouts.samples_per_prompt) if rollouts else None,
            "ppo.precision": model and why_no_precision(ppo.precision, model.dtype, model.quantization is not None),
            "ppo.importance_weight_cap": sampling and why_no_weights(ppo.importance_weight_cap, sampling.engine),
        }
        problems = [(key, reason) for key, reason in reasons.items() if reason is not None]
        if problems:
            raise key_problems(*problems)
        update: dict[str, Any] = {"minibatch_size": minibatch}
        if ppo.learning_rate is None and model is not None:
            adapter = trains_adapter(model.name, model.lora is not None)
            update["learning_rate"] = learning_rate(PPO_METHOD, adapter=adapter)
        if ppo.value_learning_rate is None and ppo.advantage == "gae":
            update["value_learning_rate"] = VALUE_LEARNING_RATES["head" if ppo.value_model is None else "model"]
        return ppo.model_copy(update=update)
