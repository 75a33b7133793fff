"""The recipe of a run on pairs of the policy's own responses; its section `online` is what makes a recipe one.

The text under each field is its documentation. A null whose meaning depends on another key is resolved, as in `schema`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ValidationInfo, field_validator

from ._sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section, key_problems, why_no_divisor
from .loss_schema import Loss
from .model_schema import Model
from .optimization import Optimizing, Recording, why_no_precision
from .own_responses_schema import (
    IterationIntervals,
    OwnResponses,
    Rollouts,
    rollout_problems,
    source_problems,
    why_not_evaluated,
)
from .reference_update import ReferenceUpdate, reference_update_problems
from .schema import Evaluation, why_no_teacher
from .training_defaults import PAIRS, learning_rate, trains_adapter


def pairs_of_a_prompt(loss: str, samples_per_prompt: int) -> int:
    """The most pairs that the responses to one prompt make: the best with the worst, or all of them, two by two, where
    the loss is the KL to a teacher."""
    return samples_per_prompt // 2 if loss == "kl" else 1


def why_no_pairs(loss: str, samples_per_prompt: int) -> str | None:
    """Why so many responses to a prompt make no pairs for this loss; None where they do."""
    if samples_per_prompt < 2:
        return "a pair needs two responses to a prompt; draw at least two"
    if loss == "kl" and samples_per_prompt % 2:
        return "loss kl learns from all responses, and takes those to a prompt two by two; draw an even number"
    return None


def without_effect_on_distilling(
    min_margin: float, missing_end_penalty: float, names: tuple[str, str]
) -> list[tuple[str, str]]:
    """The options, by their `names`, that rank responses, where the loss is the KL to a teacher and ranks nothing."""
    reason = "has no effect with loss kl, which ranks no responses; remove it"
    return [(name, reason) for name, value in zip(names, (min_margin, missing_end_penalty), strict=True) if value]


class _Objective(Section):
    """How often and how an iteration's pairs are made and learned from."""

    iterations: PositiveInt = 16
    """Times that responses are drawn, made into pairs, and learned from."""
    passes: PositiveInt = 1
    """Passes over the pairs of one iteration."""
    minibatch_size: PositiveInt | None = None
    """Pairs per update, over all processes, a divisor of the pairs that an iteration can have; null is all of these.
    A prompt gives one pair (`rollouts.completions` / `rollouts.samples_per_prompt` of them), and with `loss.name` kl
    half as many pairs as it has responses."""
    micro_batch_size: PositiveInt | None = None
    """Pairs per forward, a divisor of `online.minibatch_size`; smaller needs less memory and gives the same update.
    Null is the whole minibatch at once."""
    min_margin: NonNegativeFloat = 0.0
    """A prompt gives a pair only if the rewards of its best and its worst response differ by more than this."""
    reference_update: ReferenceUpdate | None = None
    """Null leaves the reference where it is: the policy's start, or `model.reference`."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate; null is 1e-4 with adapters and 5e-6 when all weights are trained."""


# Inherited keys come in the order of the classes from right to left: that of the file, in which checks look back.
class Online(Recording, IterationIntervals, Optimizing, _Objective):
    """The optimisation. An iteration draws `rollouts.completions` responses from the policy as it is then, pairs the
    best with the worst response to each prompt, and learns from these pairs. With `loss.name` kl nothing is ranked:
    all responses are learned from, and a reward is logged if there is one. Every key
    has a default: `online: {}` makes a recipe one of this kind."""

    SAVES_AFTER = "online.save_every"


class OnlineRecipe(OwnResponses):
    """One run on pairs of the policy's own responses. Paths are relative to the folder the command is started in."""

    rollouts: Rollouts = Rollouts()
    loss: Loss = Loss()
    online: Online
    evaluation: Evaluation = Evaluation()

    OPTIMIZATION: ClassVar[str] = "online"

    @property
    def optimization(self) -> Online:
        """The section `OPTIMIZATION`."""
        return self.online

    @property
    def pairs(self) -> int:
        """The most pairs of an iteration, over all processes."""
        rollouts = self.rollouts
        prompts = rollouts.completions // rollouts.samples_per_prompt
        return prompts * pairs_of_a_prompt(self.loss.name, rollouts.samples_per_prompt)

    @property
    def updates(self) -> int:
        """The updates of the whole run."""
        return self.online.iterations * self.online.passes * (self.pairs // (self.online.minibatch_size or self.pairs))

    @field_validator("rollouts")
    @classmethod
    def _fits_what_is_above(cls, rollouts: Rollouts, info: ValidationInfo) -> Rollouts:
        if problems := rollout_problems(rollouts, info.data):
            raise key_problems(*problems)
        return rollouts

    @field_validator("loss")
    @classmethod
    def _has_what_it_learns_from(cls, loss: Loss, info: ValidationInfo) -> Loss:
        above, distils = info.data, loss.name == "kl"
        problems = []
        if {"environment", "prompts", "rewards"} <= above.keys():
            sources = (above["environment"], above["prompts"], above["rewards"])
            problems += source_problems(*sources, learns_rewards=not distils)
        if (reason := why_no_teacher(loss, above.get("model"))) is not None:
            problems.append(("model.reference", reason))
        if distils and loss.kl is not None and loss.kl.on != "both":
            reason = f"{loss.kl.on} has no effect: no own response is chosen or rejected; remove it"
            problems.append(("loss.kl.on", reason))
        rollouts = above.get("rollouts")
        if rollouts is not None and (reason := why_no_pairs(loss.name, rollouts.samples_per_prompt)) is not None:
            problems.append(("rollouts.samples_per_prompt", f"is {rollouts.samples_per_prompt}: {reason}"))
        if problems:
            raise key_problems(*problems)
        return loss

    @field_validator("online")
    @classmethod
    def _fits_the_other_sections(cls, online: Online, info: ValidationInfo) -> Online:
        rollouts, loss, model = (info.data.get(name) for name in ("rollouts", "loss", "model"))
        problems: list[tuple[str, str]] = []
        minibatch = online.minibatch_size
        if rollouts is not None and loss is not None:
            prompts = rollouts.completions // rollouts.samples_per_prompt
            pairs = prompts * pairs_of_a_prompt(loss.name, rollouts.samples_per_prompt)
            minibatch = pairs if minibatch is None else minibatch
            if (reason := why_no_divisor(minibatch, "the pairs of an iteration,", pairs)) is not None:
                of = f"of {rollouts.completions} rollouts.completions, {rollouts.samples_per_prompt} to a prompt"
                problems.append(("online.minibatch_size", f"{reason} ({of})"))
            if loss.name == "kl":
                names = ("online.min_margin", "rollouts.missing_end_penalty")
                problems += without_effect_on_distilling(online.min_margin, rollouts.missing_end_penalty, names)
        reasons = {
            "online.micro_batch_size": why_no_divisor(online.micro_batch_size, "online.minibatch_size", minibatch),
            "online.eval_every": why_not_evaluated(online.eval_every, info.data),
            "online.precision": model
            and why_no_precision(online.precision, model.dtype, model.quantization is not None),
        }
        problems += [(key, reason) for key, reason in reasons.items() if reason is not None]
        problems += _problems_of_moving(online, loss, model)
        if problems:
            raise key_problems(*problems)
        update: dict[str, Any] = {"minibatch_size": minibatch}
        if online.learning_rate is None and model is not None:
            adapter = trains_adapter(model.name, model.lora is not None)
            update["learning_rate"] = learning_rate(PAIRS, adapter=adapter)
        return online.model_copy(update=update)


def _problems_of_moving(online: Online, loss: Loss | None, model: Model | None) -> list[tuple[str, str]]:
    """What in `online.reference_update` does not fit the other sections, None for one that is wrong itself."""
    if online.reference_update is None or loss is None or model is None:
        return []
    problems = reference_update_problems(
        online.reference_update,
        iterations=online.iterations,
        loss=loss.name,
        has_kl=loss.kl is not None,
        precision=online.precision,
        has_reference=model.reference is not None,
        has_adapter=trains_adapter(model.name, model.lora is not None),
    )
    return [(f"online.reference_update.{key}".removesuffix("."), reason) for key, reason in problems]
