"""Policy and reference on one batch: a head path and a reference source, put together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..batches import ResponseBatch
from ..models import Reference
from ..token_statistics import Extra, LearnedTokens, TokenStats
from .head_path import HeadPath, ReferencePart, choose_head_path
from .options import HeadImpl
from .reference_source import LiveReference, ReferenceSource


@dataclass(frozen=True)
class PolicyStatistics:
    """Computes `TokenStats` of batches for one policy and its reference.

    Args:
        path: how the head is computed.
        source: where the reference's part comes from.
    """

    path: HeadPath
    source: ReferenceSource

    @classmethod
    def of(cls, policy: Any, reference: Reference, impl: HeadImpl = "auto") -> PolicyStatistics:
        """The statistics beside a reference that runs on every batch.

        Raises:
            ValueError: as `choose_head_path`.
        """
        path = choose_head_path(policy, reference, impl)
        return cls(path, LiveReference(reference, path))

    @property
    def reference_model(self) -> Any | None:
        """The model that runs beside the policy; None where none does."""
        running = self.source.running
        return None if running is None else running.model

    def describe(self) -> str:
        """Which path runs and why, and where the reference's part comes from, in sentences for the log."""
        return f"{self.path.describe()} Reference: {self.source.describe()}."

    def __call__(
        self,
        policy: Any,
        batch: ResponseBatch,
        *,
        extras: Collection[Extra] = (),
        learned_tokens: LearnedTokens | None = None,
    ) -> TokenStats:
        """Statistics `[N]` of the batch's response tokens: policy with gradient, reference without.

        `learned_tokens` is that of `linear_token_stats`.

        Raises:
            ValueError: the reference is a cache that does not know this batch.
        """
        reference = self.source.part(policy, batch)
        return self.beside(reference, policy, batch, extras=extras, learned_tokens=learned_tokens)

    def beside(
        self,
        reference: ReferencePart,
        policy: Any,
        batch: ResponseBatch,
        *,
        extras: Collection[Extra] = (),
        learned_tokens: LearnedTokens | None = None,
    ) -> TokenStats:
        """The same, where the reference's part of this batch is there already."""
        output = self.path.policy_output(policy, batch)
        return self.path.token_stats(output, reference, batch.target_ids, extras=extras, learned_tokens=learned_tokens)
