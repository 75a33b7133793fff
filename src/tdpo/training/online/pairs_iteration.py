"""The state of an iteration whose pairs are being learned from, and what a checkpoint within it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...batches import TokenizedPair
from ...scoring.pair_metrics import PAIR_METRICS, averages
from ...scoring.readings import Reading


@dataclass
class LearnedPairs:
    """Sums over the pairs that were learned from since the iteration began, on this process."""

    sums: Reading = field(default_factory=lambda: Reading(len(PAIR_METRICS)))
    pairs: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, table: Tensor, tokens: int) -> None:
        """Take in a micro-batch: a row of metrics for each pair, and how many tokens it computed."""
        self.sums.add(table.sum(dim=0))
        self.pairs += table.shape[0]
        self.tokens += tokens

    def averages(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the pairs of all processes, and the seconds that learning took; `total` sums over processes."""
        extra = torch.tensor([self.pairs, self.tokens, self.seconds, 1.0], dtype=torch.float64)
        together = total(torch.cat([self.sums.values, extra]))
        pairs, tokens, seconds, processes = together[-4:].tolist()
        numbers = averages(together[:-4], pairs)
        numbers.pop("loss", None)  # transformers' own covers the same updates
        return {
            **numbers,
            "learning_seconds": seconds / processes,
            "learning_tokens_per_second": tokens * processes / max(seconds, 1e-9),
        }


@dataclass
class PairIteration:
    """Pairs of an iteration's responses.

    Attributes:
        number: of the iteration, counted from 0.
        pairs: on this process.
        spare: two responses to one prompt, for a micro-batch without a pair on this process while others have some.
            It is computed and counts nothing.
        logs: numbers of sampling, for the line that is logged at the end.
        update_pairs: pairs of each update, over all processes.
        learning: what the updates so far have measured.
    """

    number: int
    pairs: list[TokenizedPair]
    spare: TokenizedPair
    logs: dict[str, float]
    update_pairs: list[int]
    learning: LearnedPairs = field(default_factory=LearnedPairs)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "number": self.number,
            "pairs": [_ids(pair) for pair in self.pairs],
            "spare": _ids(self.spare),
            "logs": self.logs,
            "update_pairs": self.update_pairs,
            "learning": {**vars(self.learning), "sums": self.learning.sums.values},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> PairIteration:
        """The iteration of `state_dict`."""
        pairs = [TokenizedPair.of(*ids) for ids in state["pairs"]]
        spare, learning = TokenizedPair.of(*state["spare"]), LearnedPairs(**{**state["learning"], "sums": Reading(0)})
        learning.sums.set(state["learning"]["sums"])
        return cls(state["number"], pairs, spare, state["logs"], state["update_pairs"], learning)


def without_ranks(numbers: dict[str, float]) -> dict[str, float]:
    """The `numbers` of pairs whose responses are neither chosen nor rejected: means over both, and nothing that
    compares them."""
    kept = {
        name: value
        for name, value in numbers.items()
        if name not in ("accuracy", "margin") and not name.startswith(("chosen_", "rejected_"))
    }
    means = {
        name: (numbers[f"chosen_{name}"] + numbers[f"rejected_{name}"]) / 2
        for name in ("logp", "forward_kl", "reverse_kl")
        if f"chosen_{name}" in numbers
    }
    return {**means, **kept}


def _ids(pair: TokenizedPair) -> tuple[list[int], list[int], list[int]]:
    return pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
