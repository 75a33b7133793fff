"""The state of one iteration under way: what its updates read and change, and what a checkpoint within it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .meter import LearningMeter
from .rollouts import Rollout

STOP_BEYOND = 1.5  # times target_kl


@dataclass
class Iteration:
    """An iteration whose responses are sampled and judged, and are being learned from.

    Attributes:
        rollout: the responses, with all that learning from them needs.
        coefficient: weight of the KL in this iteration's rewards and losses. The controller has moved on to the next.
        logs: numbers of sampling and judging, for the line that is logged at the end.
        update_tokens: response tokens of each update, over all processes.
        learning: what the updates so far have measured, on this process.
        is_stopped: whether the updates that are left are skipped, because `target_kl` was exceeded.
        skipped_updates: how many have been skipped.
    """

    rollout: Rollout
    coefficient: float
    logs: dict[str, float]
    update_tokens: list[int]
    learning: LearningMeter = field(default_factory=LearningMeter)
    is_stopped: bool = False
    skipped_updates: int = 0

    @property
    def number(self) -> int:
        """Counted from 0."""
        return self.rollout.iteration

    def begin_update(self, target_kl: float | None, total: Callable[[Tensor], Tensor]) -> None:
        """Stop the iteration if the last update found the policy further from the one that sampled than `target_kl`
        (nats per token) allows; `total` sums a vector over processes."""
        self.is_stopped = self.is_stopped or self._has_moved_too_far(target_kl, total)
        self.skipped_updates += self.is_stopped

    def _has_moved_too_far(self, target_kl: float | None, total: Callable[[Tensor], Tensor]) -> bool:
        if target_kl is None or not self.learning.updates:
            return False
        moved, tokens = total(self.learning.last_update()).tolist()
        return bool(moved / max(tokens, 1.0) > STOP_BEYOND * target_kl)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; the tokens of updates follow from the rollout."""
        return {
            "rollout": self.rollout.state_dict(),
            "coefficient": self.coefficient,
            "logs": self.logs,
            "learning": self.learning.state_dict(),
            "is_stopped": self.is_stopped,
            "skipped_updates": self.skipped_updates,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], count_tokens: Callable[[Rollout], list[int]]) -> Iteration:
        """The iteration of `state_dict`; `count_tokens` gives the `update_tokens` of its rollout."""
        rollout, learning = Rollout.from_state_dict(state["rollout"]), LearningMeter.from_state_dict(state["learning"])
        return cls(**{**state, "rollout": rollout, "learning": learning, "update_tokens": count_tokens(rollout)})


def iteration_in(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The `state_dict` of the iteration that a checkpoint of PPO lies within; None of one that lies between two.

    Checkpoints of earlier versions held the same values in other places, and are read as well.
    """
    if "iteration" in checkpoint:
        state: dict[str, Any] | None = checkpoint["iteration"]
        return state
    if checkpoint["rollout"] is None:
        return None
    return {
        "rollout": checkpoint["rollout"],
        "coefficient": checkpoint["logs"]["kl_coefficient"],
        "logs": checkpoint["logs"],
        "learning": checkpoint["learning"],
        "is_stopped": checkpoint["stopped"],
        "skipped_updates": checkpoint["skipped"],
    }
