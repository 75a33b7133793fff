"""Policy and reference on one batch: the two forwards and the operator between them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..batches import PairBatch
from ..models import Reference, find_head, policy_hidden, select_logits
from ..token_statistics import Extra, Head, Impl, TokenStats, linear_token_stats, token_stats


@dataclass
class PolicyStatistics:
    """Computes `TokenStats` of batches for one policy and its reference.

    `head` is None where the model's logits are not a linear head on its body's hidden states; statistics
    then come from full logits.
    """

    reference: Reference
    head: Callable[[], Head] | None
    impl: Impl = "auto"

    @classmethod
    def of(cls, policy: Any, reference: Reference, impl: Impl = "auto") -> PolicyStatistics:
        head = find_head(policy)
        return cls(reference, head if reference.head is not None else None, impl)

    def describe(self) -> str:
        """Which path runs, in a sentence for the log."""
        if self.head is None:
            return (
                "Statistics from full logits, at more memory: this model's logits are not a linear head (with scale "
                f"and soft cap) on its body's hidden states. Reference: {self.reference.kind}."
            )
        return f"Statistics from hidden states, head outside the forward. Reference: {self.reference.kind}."

    def __call__(self, policy: Any, batch: PairBatch, *, extras: Collection[Extra] = ()) -> TokenStats:
        """Statistics `[N]` of the batch's response tokens: policy with gradient, reference without."""
        inputs, index = batch.model_inputs(), batch.response_index
        if self.head is None:
            reference_logits = self.reference.logits(policy, inputs, index)
            return token_stats(select_logits(policy, inputs, index), reference_logits, batch.target_ids, extras=extras)
        reference_hidden, reference_head = self.reference.hidden_and_head(policy, inputs, index)
        return linear_token_stats(
            policy_hidden(policy, inputs, index),
            self.head(),
            reference_hidden,
            reference_head,
            batch.target_ids,
            extras=extras,
            impl=self.impl,
        )
