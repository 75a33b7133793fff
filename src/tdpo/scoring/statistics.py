"""Policy and reference on one batch: which path the head takes, and where the reference's part comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..batches import PairBatch
from ..models import Reference, find_head, policy_hidden, select_logits
from ..reference_cache import ReferenceCache
from ..token_statistics import (
    Extra,
    Head,
    ReferenceSummary,
    TokenStats,
    frozen_head_token_stats,
    linear_token_stats,
    summarize_reference,
    token_stats,
)
from .options import HeadImpl

HeadPath = Literal["frozen", "tiled", "dense", "logits"]
SENTENCES = {
    "frozen": "Head: frozen and shared, one walk over the vocabulary and none in the backward pass.",
    "tiled": "Head: in tiles of the vocabulary, without full logits ({why}).",
    "dense": "Head: full float64 logits from hidden states ({why}).",
    "logits": "Head: full logits from the model's own forward, at more memory ({why}).",
}


@dataclass
class PolicyStatistics:
    """Computes `TokenStats` of batches for one policy and its reference.

    Args:
        reference: None once a cache holds all that it says.
        head: the policy's head; None where the model's logits are not a linear head on its body's hidden states.
        path: "frozen" (`frozen_head_token_stats`), "tiled" or "dense" (`linear_token_stats`), "logits" (`token_stats`).
        why: why it is this path, in a few words.
        cache: what the reference said about the batches that name rows in it.
        reference_head: the reference's head as a constant; with a cache of hidden states.
    """

    reference: Reference | None
    head: Callable[[], Head] | None
    path: HeadPath
    why: str
    cache: ReferenceCache | None = None
    reference_head: Head | None = None

    @classmethod
    def of(cls, policy: Any, reference: Reference, impl: HeadImpl = "auto") -> PolicyStatistics:
        """The fastest path that applies, or the one that `impl` asks for.

        Raises:
            ValueError: `impl` is "frozen", but policy and reference do not share one frozen head.
        """
        head = find_head(policy)
        if head is None or reference.head is None:
            why = "its logits are not a linear head, with scale and soft cap, on its body's hidden states"
            if impl == "frozen":
                raise ValueError(f"head_impl='frozen' does not apply: {why}. Use 'auto'.")
            return cls(reference, None, "logits", why)
        obstacle = _obstacle_to_frozen(head(), reference.head())
        if impl == "frozen" and obstacle is not None:
            raise ValueError(f"head_impl='frozen' does not apply: {obstacle}. Use 'auto'.")
        if impl in ("tiled", "dense"):
            return cls(reference, head, impl, "as asked for")
        if obstacle is None:
            return cls(reference, head, "frozen", "")
        return cls(reference, head, "tiled", obstacle)

    def describe(self) -> str:
        """Which path runs and why, in sentences for the log."""
        kinds = {"adapter-off": "the policy with its adapter off", "copy": "a frozen copy of the start"}
        where = "read from a cache" if self.cache is not None or self.reference is None else self.reference.kind
        return f"{SENTENCES[self.path].format(why=self.why)} Reference: {kinds.get(where, where)}."

    def __call__(self, policy: Any, batch: PairBatch, *, extras: Collection[Extra] = ()) -> TokenStats:
        """Statistics `[N]` of the batch's response tokens: policy with gradient, reference without.

        Raises:
            ValueError: the reference is a cache that does not know these pairs.
        """
        inputs, index = batch.model_inputs(), batch.response_index
        if self.path == "logits":
            reference_logits = self._live().logits(policy, inputs, index)
            return token_stats(select_logits(policy, inputs, index), reference_logits, batch.target_ids, extras=extras)
        known = self._cached(batch)
        reference_head = self.reference_head
        if known is None:
            known, reference_head = self.reference_says(self._live(), policy, batch)
        hidden = policy_hidden(policy, inputs, index)
        return self.of_hidden(hidden, known, reference_head, batch.target_ids, extras=extras)

    def reference_says(
        self, reference: Reference, policy: Any, batch: PairBatch
    ) -> tuple[dict[str, Tensor], Head | None]:
        """What `of_hidden` needs to know of a batch's N tokens, a row a token, and the reference's own head.

        On the frozen path these are the fields of a `ReferenceSummary` and no head, else the "hidden" states `[N, D]`.
        """
        if self.path == "frozen":
            summary = reference_summary(reference, policy, batch)
            return {name: value for name, value in vars(summary).items() if value is not None}, None
        hidden, head = reference.hidden_and_head(policy, batch.model_inputs(), batch.response_index)
        return {"hidden": hidden}, head

    def of_hidden(
        self,
        hidden: Tensor,
        known: dict[str, Tensor],
        reference_head: Head | None,
        targets: Tensor,
        *,
        extras: Collection[Extra] = (),
    ) -> TokenStats:
        """Statistics `[N]` of the policy's hidden states `[N, D]` beside what `reference_says`; not for full logits."""
        assert self.head is not None and self.path != "logits"
        if self.path == "frozen":
            return frozen_head_token_stats(hidden, self.head(), ReferenceSummary(**known), targets, extras=extras)
        assert reference_head is not None
        return linear_token_stats(
            hidden, self.head(), known["hidden"], reference_head, targets, extras=extras, impl=self.path
        )

    def _cached(self, batch: PairBatch) -> dict[str, Tensor] | None:
        if self.cache is None or batch.reference_rows is None:
            return None
        return self.cache.fetch(batch.reference_rows)

    def _live(self) -> Reference:
        if self.reference is None:
            raise ValueError(
                "the reference cache holds the pairs that the trainer was made with, and the reference model is gone. "
                "Pass these pairs as eval_dataset when the trainer is made, or keep the reference: reference='model'."
            )
        return self.reference


@torch.no_grad()
def reference_summary(reference: Reference, policy: Any, batch: PairBatch) -> ReferenceSummary:
    """What the reference says about a batch, as a policy with the same frozen head needs it."""
    hidden, head = reference.hidden_and_head(policy, batch.model_inputs(), batch.response_index)
    return summarize_reference(hidden, head, batch.target_ids)


def _obstacle_to_frozen(policy: Head, reference: Head) -> str | None:
    """Why the two are not one frozen head without a softcap, or None where they are."""
    if policy.weight.requires_grad or (policy.bias is not None and policy.bias.requires_grad):
        return "the head, or the embedding that it is tied to, is trained"
    if policy.softcap is not None or reference.softcap is not None:
        return "the head has a soft cap"
    same_weight = _same(policy.weight, reference.weight)
    same_bias = _same(policy.bias, reference.bias)
    if not (same_weight and same_bias and policy.scale == reference.scale):
        return "policy and reference have different heads"
    return None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.shape == b.shape and torch.equal(a, b.to(a.device)))
