"""Where the reference's part of a batch comes from: a model that runs, or a cache. Decided once, then never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..batches import ResponseBatch
from ..models import Reference
from ..reference_cache import ReferenceCache
from ..token_statistics import Head, summarize_reference
from .head_path import HeadPath, ReferencePart

KINDS = {"adapter-off": "the policy with its adapter off", "copy": "a frozen copy of the start"}


@dataclass(frozen=True)
class LiveReference:
    """A reference that runs on every batch.

    Args:
        reference: the model, or the policy with its adapter off.
        path: the head path, which decides in what form the reference's part is given.
        head: a copy of the reference's head that is used in its place, if there is one. PPO needs it: while the policy
            learns from a rollout, the reference does not run, and its head must be there all the same.
    """

    reference: Reference
    path: HeadPath
    head: Head | None = None

    @property
    def running(self) -> Reference:
        return self.reference

    def describe(self) -> str:
        return KINDS.get(self.reference.kind, self.reference.kind)

    @torch.no_grad()
    def part(self, policy: Any, batch: ResponseBatch) -> ReferencePart:
        """What the reference says about the batch's N response tokens."""
        inputs, index = batch.model_inputs(), batch.response_index
        if self.path.name == "logits":
            return ReferencePart({"logits": self.reference.logits(policy, inputs, index)})
        hidden, live_head = self.reference.hidden_and_head(policy, inputs, index)
        if self.path.name == "frozen":
            summary = summarize_reference(hidden, live_head, batch.target_ids)
            return ReferencePart({name: value for name, value in vars(summary).items() if value is not None})
        return ReferencePart({"hidden": hidden}, live_head if self.head is None else self.head)


@dataclass(frozen=True)
class CachedReference:
    """A reference cache, which batches were read from when they were laid out.

    Args:
        cache: what the reference said.
        head: the reference's head as a constant; None where the cache holds summaries.
        live: asked about batches that the cache does not hold; None where no model is left to be asked.
    """

    cache: ReferenceCache
    head: Head | None = None
    live: LiveReference | None = None

    @property
    def running(self) -> Reference | None:
        return None if self.live is None else self.live.reference

    def describe(self) -> str:
        return "read from a cache"

    def part(self, policy: Any, batch: ResponseBatch) -> ReferencePart:
        """What the reference said about the batch's N response tokens.

        Raises:
            ValueError: the cache does not know the batch, and the model is gone.
        """
        if batch.reference is not None:
            return ReferencePart(batch.reference, self.head)
        if self.live is None:
            raise ValueError(
                "the reference cache holds the pairs that the trainer was made with, and the reference model is gone. "
                "Pass these pairs as eval_dataset when the trainer is made, or keep the reference: reference='model'."
            )
        return self.live.part(policy, batch)


ReferenceSource = LiveReference | CachedReference


def copied_head(reference: Reference, device: torch.device) -> Head:
    """The head of a reference as it is now, a constant in memory of its own."""
    assert reference.head is not None
    head = reference.head()
    weight, bias = (None if t is None else t.detach().clone().to(device) for t in (head.weight, head.bias))
    assert weight is not None
    return Head(weight, bias, scale=head.scale, softcap=head.softcap)
