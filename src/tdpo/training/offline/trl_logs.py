"""What is logged under the names of TRL's `DPOTrainer`, beside tdpo's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...batches import ResponseBatch
from ...config.trl_names import LOG_NAMES, TOKENS_LOG_NAME
from .config import TDPOConfig


class TRLLogs:
    """Gives logged numbers TRL's names too, where the configuration asks for them, and counts tokens as TRL does.

    Args:
        args: its `log_names` decides.
    """

    def __init__(self, args: TDPOConfig) -> None:
        self.is_on = args.log_names == "both"
        self.tokens = 0  # that this process has trained on since the last log

    def add(self, batch: ResponseBatch) -> None:
        """Take in a micro-batch of training."""
        if self.is_on:
            self.tokens += batch.num_sequence_tokens

    @property
    def names(self) -> tuple[str, ...]:
        """TRL's names that are logged."""
        return (*LOG_NAMES, TOKENS_LOG_NAME) if self.is_on else ()

    def of_training(self, numbers: Mapping[str, float], trainer: Any) -> dict[str, float]:
        """TRL's names for the averages of a training log. The count begins anew: the log has it from here on."""
        named = self._named(numbers, trainer)
        self.tokens = 0
        return named

    def of_evaluation(self, numbers: Mapping[str, float], trainer: Any, prefix: str) -> dict[str, float]:
        """TRL's names for the averages of an evaluation, each with its prefix."""
        return {f"{prefix}_{name}": value for name, value in self._named(numbers, trainer).items()}

    def _named(self, numbers: Mapping[str, float], trainer: Any) -> dict[str, float]:
        if not self.is_on:
            return {}
        named = {name: numbers[own] for name, own in LOG_NAMES.items()}
        return {**named, TOKENS_LOG_NAME: self._tokens_so_far(trainer)}

    def _tokens_so_far(self, trainer: Any) -> int:
        """Tokens trained on by all processes. What was logged before is in the state, which a resumed run has too."""
        logged = (line[TOKENS_LOG_NAME] for line in reversed(trainer.state.log_history) if TOKENS_LOG_NAME in line)
        since = self.tokens
        if trainer.args.world_size > 1:
            since = int(trainer._total(torch.tensor([since], dtype=torch.float64)).tolist()[0])
        return int(next(logged, 0)) + since
