"""The reference of online pairs where it follows the policy: when it moves, and what a checkpoint holds of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ...config import ReferenceUpdate, why_no_average
from ...models import Reference, as_shard_of, has_adapter, kept_whole, move_reference, weights_that_follow
from ..resumption import check_alike, reading

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.pt"  # of a checkpoint


class MovingReference:
    """Moves a copy of the policy towards it, before every `update.every`-th iteration but the first.

    Args:
        policy: the model that is trained, unwrapped.
        reference: its copy.
        update: how it moves.

    Raises:
        ValueError: the policy has an adapter, which would have to be averaged.
    """

    def __init__(self, policy: Any, reference: Reference, update: ReferenceUpdate) -> None:
        if update.weight < 1 and has_adapter(policy):
            raise ValueError(f"reference_update.weight: {why_no_average(update.weight)}")
        self.policy, self.reference, self.update = policy, reference, update

    def before(self, iteration: int) -> None:
        """Move where it is time to; called once before each iteration is collected."""
        if iteration and iteration % self.update.every == 0:
            move_reference(self.policy, self.reference, self.update.weight)
            logger.info("Iteration %d: the reference moved: %s.", iteration, self.update.in_words())

    def moves_until(self, iteration: int) -> int:
        """How often it has moved when this iteration is learned from."""
        return iteration // self.update.every

    def save(self, checkpoint: Path, *, writes: bool) -> None:
        """Write its own weights; those that are not trained are the policy's. All processes call it, one `writes`."""
        follow = weights_that_follow(self.policy, self.reference)
        weights = {name: kept_whole(own.detach(), keeps=writes) for name, (own, _) in follow.items()}
        if writes:
            torch.save(weights, checkpoint / REFERENCE_FILE)

    @torch.no_grad()
    def load(self, checkpoint: Path) -> None:
        """Go on from `save`. Raises DamagedCheckpoint where the file cannot be read."""
        with reading(checkpoint, REFERENCE_FILE):
            weights = torch.load(checkpoint / REFERENCE_FILE, weights_only=True, map_location="cpu")
            for name, (own, _) in weights_that_follow(self.policy, self.reference).items():
                own.copy_(as_shard_of(weights[name], own))


def check_reference_of(checkpoint: Path, moving: MovingReference | None) -> None:
    """Raise ValueError if the reference moves in only one of a checkpoint's run and the run that goes on from it."""
    check_alike(
        checkpoint,
        there=(checkpoint / REFERENCE_FILE).exists(),
        here=moving is not None,
        yes="whose reference moves (reference_update)",
        no="whose reference stays",
        advice="Put reference_update back, or start anew.",
    )
