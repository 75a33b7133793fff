"""The section `online.reference_update`: a reference that follows the policy, and where it cannot."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ._sections import PositiveInt, Section

# What is said wherever KLs of such a run are shown.
KLS_OF_TRAINING = (
    "KLs of the training are to the reference as it was then, and not to the start, with which `tdpo evaluate` compares"
)
KLS_OF_EVALUATIONS = (
    "The reference moved while this was trained (online.reference_update). KLs here are to the start, and not to where "
    "it went."
)


class ReferenceUpdate(Section):
    """The reference follows the policy, as in iterative DPO and TR-DPO (arXiv 2404.09656): after every so many
    iterations its weights become (1 − w)·reference + w·policy. KLs and losses are then to this reference, and not to
    the start, with which `tdpo evaluate` compares."""

    every: PositiveInt = 1
    """Iterations from one move of the reference to the next; the first comes after so many."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The policy's share w in the reference's new weights: 1 is a copy of the policy, less is an average with what the
    reference was. Adapters are only copied, since the average of their factors is no average of adapters; so are
    weights held in bfloat16, where small moves are rounded away."""

    def in_words(self) -> str:
        """How the reference moves, as the end of a sentence."""
        when = "before every iteration but the first" if self.every == 1 else f"after every {self.every} iterations"
        if self.weight == 1:
            return f"{when} it becomes a copy of the policy"
        return f"{when} it becomes {self.weight:g} × the policy + {1 - self.weight:g} × itself"


def reference_update_problems(
    update: ReferenceUpdate,
    *,
    iterations: int,
    loss: str,
    has_kl: bool,
    precision: str,
    has_reference: bool = False,
    has_adapter: bool = False,
) -> list[tuple[str, str]]:
    """What does not fit beside a reference that moves: pairs of its key, "" for the whole, and the reason.

    Args:
        update: how it moves.
        iterations: of the run.
        loss: the name of the loss.
        has_kl: whether there is a KL beside it.
        precision: what weights are held and computed in, as the recipe says it.
        has_reference: whether another model than the policy's start was named as the reference.
        has_adapter: whether an adapter is trained.
    """
    problems = []
    if loss == "kl":
        problems.append(("", "has no place with loss kl: its reference is the teacher, which does not move; remove it"))
    elif has_reference:
        reason = "moves the policy's own start, and another model was named as the reference; remove one of the two"
        problems.append(("", reason))
    if loss == "sft" and not has_kl:
        reason = "has no effect with loss sft, which has no reference; remove it, or add a KL beside the loss"
        problems.append(("", reason))
    if update.every >= iterations:
        instead = f"use at most {iterations - 1}" if iterations > 1 else "remove it"
        reason = f"{update.every} has no effect: the reference moves between two iterations of {iterations}; {instead}"
        problems.append(("every", reason))
    if update.weight < 1 and has_adapter:
        problems.append(("weight", why_no_average(update.weight)))
    elif update.weight < 1 and precision == "bfloat16":
        reason = (
            f"{update.weight:g} would move weights held in bfloat16 by less than they can express; use 1, which is a "
            "copy, or another precision"
        )
        problems.append(("weight", reason))
    return problems


def why_no_average(weight: float) -> str:
    """Why the reference of a policy with an adapter takes no such share of it."""
    return (
        f"{weight:g} would average the two factors of each adapter, whose product then is no average of two adapters; "
        "use 1, which is a copy, or train all weights"
    )
