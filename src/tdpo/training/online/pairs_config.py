"""`OnlineTDPOConfig`: `transformers.TrainingArguments` plus sampling, the choice of pairs and a loss of pairs."""

# ruff: noqa: RUF009  # FIELDS.field calls dataclasses.field, which ruff does not see

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from ...config import Loss, LossName, Recipe, RecipeFields
from ...methods import METHODS
from ..kl_arguments import KLArguments
from .arguments import FIELDS as SAMPLING_FIELDS
from .arguments import OnlineArguments

FIELDS = RecipeFields(
    Recipe,
    {
        "loss": "loss.name",
        "beta": "loss.beta",
        "alpha": "loss.alpha",
        "label_smoothing": "loss.label_smoothing",
    },
    nullable={"beta": False, "alpha": False},
)


@dataclass
class OnlineTDPOConfig(KLArguments, OnlineArguments):
    """Arguments of `OnlineTDPOTrainer`; everything of `TrainingArguments` besides, with the defaults of `Arguments`.

    One iteration samples `completions` responses, makes a pair of the best and the worst response to each prompt, and
    learns from these pairs in `passes` of updates; `per_device_train_batch_size` × `gradient_accumulation_steps` ×
    processes pairs make an update, and `save_steps` and `eval_steps` count updates. One line is logged an iteration.

    Raises:
        ValueError: values out of range, or without effect beside the others; all of them are named.
    """

    loss: LossName = FIELDS.field("loss")
    beta: float = FIELDS.field("beta", Loss.DEFAULT_BETA)
    alpha: float = FIELDS.field("alpha", Loss.DEFAULT_ALPHA)
    label_smoothing: float = FIELDS.field("label_smoothing")
    passes: int = field(default=1, metadata={"help": "Times that the pairs of an iteration are learned from."})
    min_margin: float = field(
        default=0.0,
        metadata={"help": "A prompt gives a pair only if the rewards of its best and worst response differ by more."},
    )

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts of an iteration, over all processes."""
        return self.completions // self.samples_per_prompt

    @property
    def learned_per_iteration(self) -> int:
        """Pairs of an iteration, over all processes, if every prompt gives one."""
        return self.prompts_per_iteration

    def _problems(self) -> Iterator[str]:
        wrong = [*SAMPLING_FIELDS.problems(self), *FIELDS.problems(self), *self._own_ranges()]
        yield from wrong
        yield from self._without_effect("online preference learning")
        yield from self._kl_problems()
        for name in ("beta", "alpha", "label_smoothing") if self.loss in get_args(LossName) else ():
            value = getattr(self, name)
            if value != getattr(type(self), name) and not getattr(METHODS[self.loss], f"has_{name}"):
                yield f"{name}={value} has no effect with loss={self.loss!r}; leave it out or use loss='tdpo2'"
        if not wrong:  # sizes are computed with these
            yield from self._sizes()

    def _own_ranges(self) -> Iterator[str]:
        if not isinstance(self.passes, int) or self.passes < 1:
            yield f"passes must be a whole number ≥ 1, got {self.passes!r}"
        if not self.min_margin >= 0:
            yield f"min_margin must be a number ≥ 0, got {self.min_margin!r}"

    def _sizes(self) -> Iterator[str]:
        if self.samples_per_prompt < 2:
            yield f"samples_per_prompt={self.samples_per_prompt}: a pair needs two responses to a prompt"
        yield from self._prompts_per_process()
        if self.prompts_per_iteration % self.update_size:
            yield (
                f"an update takes per_device_train_batch_size × gradient_accumulation_steps × processes = "
                f"{self.update_size} pairs, which does not divide the {self.prompts_per_iteration} prompts of an "
                f"iteration (completions={self.completions} / samples_per_prompt={self.samples_per_prompt})"
            )
