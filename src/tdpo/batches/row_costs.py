"""Which rows of a batch are computed faster on a GPU: padded ones, or rows that share prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .responses import PromptResponses, sequence_length
from .visibility import few_widths

# What an operation of attention costs beside one of a matrix product, forward and backward together. "causal" and
# "dense" follow from times on one H200 (Qwen3-1.7B's shape, prompts of 512 and responses of 512 tokens: attention 20 ms
# of 8.4 million causal pairs of positions, 51 ms of 18.9 million under a dense mask, products 110 ms of 12,288
# tokens), and agree with the steps' 351 and 357 ms. "blocks" has not been measured yet: FlexAttention is taken to need
# a quarter more than the causal kernel for a pair that is seen. `benchmarks/step.py --device cuda` shows what it needs.
COST = {"causal": 3.3, "dense": 3.7, "blocks": 4.1}


@dataclass(frozen=True)
class RowCosts:
    """Estimates what the body costs for a batch, in multiply-adds of matrix products.

    Args:
        per_token: multiply-adds of the layers' products for a token.
        per_pair: those of attention for a pair of positions, all layers and heads together.
        ranged: whether attention skips what a position does not see.
    """

    per_token: int
    per_pair: int
    ranged: bool

    def shared_is_faster(self, prompts: Sequence[PromptResponses], widths: Sequence[int]) -> bool:
        """Whether rows that share prompts, so many tokens wide each, cost no more than a row for each response."""
        return self.shared(prompts, widths) <= self.padded(prompts)

    def padded(self, prompts: Sequence[PromptResponses]) -> float:
        rows, width = sum(len(prompt.responses) for prompt in prompts), max(map(sequence_length, prompts))
        return self._cost(rows * width, rows * width**2 / 2, "causal")

    def shared(self, prompts: Sequence[PromptResponses], widths: Sequence[int]) -> float:
        if not self.ranged:
            width = max(widths)
            return self._cost(len(widths) * width, len(widths) * width**2, "dense")
        seen = sum(_pairs_seen(prompt) for prompt in prompts)
        return self._cost(len(widths) * few_widths(max(widths)), seen, "blocks")

    def _cost(self, tokens: int, pairs: float, kind: str) -> float:
        return tokens * self.per_token + COST[kind] * pairs * self.per_pair


def _pairs_seen(prompt: PromptResponses) -> float:
    """Pairs of positions that see each other, a prompt and its responses in one row."""
    own = len(prompt.prompt_ids)
    return own**2 / 2 + sum(len(ids) * own + len(ids) ** 2 / 2 for ids in prompt.responses)
