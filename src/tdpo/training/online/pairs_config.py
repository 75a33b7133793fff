"""`OnlineTDPOConfig`: `transformers.TrainingArguments` plus sampling, the choice of pairs and a loss of pairs."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...config import (
    Loss,
    LossName,
    OnlineRecipe,
    RecipeFields,
    ReferenceUpdate,
    pairs_of_a_prompt,
    reference_update_problems,
    why_no_pairs,
    without_effect_on_distilling,
)
from ..loss_arguments import LossArguments
from .arguments import SAMPLING_KEYS, OnlineArguments

FIELDS = RecipeFields(
    OnlineRecipe,
    {
        **SAMPLING_KEYS,
        "iterations": "online.iterations",
        "precision": "online.precision",
        "passes": "online.passes",
        "min_margin": "online.min_margin",
        "loss": "loss.name",
        "beta": "loss.beta",
        "alpha": "loss.alpha",
        "gamma": "loss.gamma",
        "label_smoothing": "loss.label_smoothing",
    },
    nullable={"alpha": False, "max_new_tokens": False},
)


@dataclass
class OnlineTDPOConfig(LossArguments, OnlineArguments):
    """Arguments of `OnlineTDPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`.

    One iteration samples `completions` responses, makes a pair of the best and the worst response to each prompt, and
    learns from these pairs in `passes` of updates; `per_device_train_batch_size` × `gradient_accumulation_steps` ×
    processes pairs make an update, and `save_steps` and `eval_steps` count updates. One line is logged an iteration.
    With `loss` "kl" nothing is ranked: the responses to a prompt are taken two by two, and all are learned from.

    Raises:
        ValueError: values out of range, or without effect beside the others; all of them are named.
    """

    loss: LossName = FIELDS.field("loss")
    beta: float = FIELDS.field("beta")
    alpha: float = FIELDS.field("alpha", Loss.DEFAULT_ALPHA)
    gamma: float | None = FIELDS.field("gamma")
    label_smoothing: float = FIELDS.field("label_smoothing")
    passes: int = FIELDS.field("passes")
    min_margin: float = FIELDS.field("min_margin")

    reference_update: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The reference follows the policy: every (iterations from one move to the next) and weight (the "
            "policy's share in its new weights; 1 is a copy) in a dictionary, or in JSON. None: it stays the start."
        },
    )

    @property
    def moving_reference(self) -> ReferenceUpdate | None:
        """How the reference moves, with its defaults; None where it stays."""
        given = self.reference_update
        if given is None:
            return None
        return ReferenceUpdate.model_validate(json.loads(given) if isinstance(given, str) else given)

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts of an iteration, over all processes."""
        return self.completions // self.samples_per_prompt

    @property
    def learned_per_iteration(self) -> int:
        """Pairs of an iteration, over all processes, if every prompt gives what it can."""
        return self.prompts_per_iteration * pairs_of_a_prompt(self.loss, self.samples_per_prompt)

    @property
    def distils(self) -> bool:
        """Whether the KL to a teacher is all that is learned, so that nothing is ranked and no reward is needed."""
        return self.loss == "kl"

    def _problems(self) -> Iterator[str]:
        wrong = [*FIELDS.problems(self)]
        yield from wrong
        yield from self._without_effect("online preference learning")
        yield from self._kl_problems()
        yield from self._strength_problems()
        if self.distils:
            yield from self._without_effect_on_distilling()
        if not wrong:  # sizes are computed with these
            yield from self._sizes()
            yield from self._reference_problems()

    def check_reference(self, ref_model: Any | None) -> None:
        """Raise ValueError where the reference moves and there is another one than the policy's start."""
        if ref_model is not None and self.reference_update is not None:
            raise ValueError("; ".join(self._reference_problems(has_reference=True)))

    def _reference_problems(self, *, has_reference: bool = False) -> Iterator[str]:
        try:
            update = self.moving_reference
        except ValueError:  # of pydantic's and of json's
            yield (
                "reference_update must be a dictionary with some of every (a whole number ≥ 1) and weight (a number "
                f"> 0 and ≤ 1), or JSON of one, got {self.reference_update!r}"
            )
            return
        if update is None:
            return
        problems = reference_update_problems(
            update,
            iterations=self.iterations,
            loss=self.loss,
            has_kl=self.kl is not None,
            precision=self.precision,
            has_reference=has_reference,
        )
        for key, reason in problems:
            yield f"reference_update{key and '.'}{key} {reason}"

    def _without_effect_on_distilling(self) -> Iterator[str]:
        names = ("min_margin", "missing_end_penalty")
        for name, reason in without_effect_on_distilling(self.min_margin, self.missing_end_penalty, names):
            yield f"{name}={getattr(self, name)} {reason}"
        try:
            side = "both" if self.kl_term is None else self.kl_term.on
        except (TypeError, ValueError):  # it is wrong itself, which is said elsewhere
            return
        if side != "both":
            yield f"kl with on={side!r} has no effect with loss='kl': no own response is chosen or rejected; remove it"

    def _sizes(self) -> Iterator[str]:
        if reason := why_no_pairs(self.loss, self.samples_per_prompt):
            yield f"samples_per_prompt={self.samples_per_prompt}: {reason}"
            return
        yield from self._prompts_per_process()
        if self.learned_per_iteration % self.update_size:
            yield (
                f"an update takes per_device_train_batch_size × gradient_accumulation_steps × processes = "
                f"{self.update_size} pairs, which does not divide the {self.learned_per_iteration} "
                f"{'pairs' if self.distils else 'prompts'} of an iteration (completions={self.completions}, "
                f"samples_per_prompt={self.samples_per_prompt})"
            )
