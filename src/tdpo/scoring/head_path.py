"""How hidden states become statistics: the path that the head takes, chosen once and pure from then on.

"frozen" is `frozen_head_token_stats`, "tiled" and "dense" are `linear_token_stats`, and "logits" is `token_stats` on
the logits of the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..batches import ResponseBatch
from ..models import Reference, find_head, has_quantized_head, response_hidden, select_logits
from ..token_statistics import (
    Extra,
    Head,
    JensenShannon,
    LearnedTokens,
    ReferenceSummary,
    TokenStats,
    frozen_head_token_stats,
    linear_token_stats,
    token_stats,
)
from .options import HeadImpl

PathName = Literal["frozen", "tiled", "dense", "logits"]
SENTENCES = {
    "frozen": "Head: frozen and shared, one walk over the vocabulary and none in the backward pass.",
    "tiled": "Head: in tiles of the vocabulary, without full logits ({why}).",
    "dense": "Head: full float64 logits from hidden states ({why}).",
    "logits": "Head: full logits from the model's own forward, at more memory ({why}).",
}


@dataclass(frozen=True)
class ReferencePart:
    """What the reference says about N response tokens, in the form that a head path needs.

    Args:
        values: tensors with one row for each token: the fields of a `ReferenceSummary` on the frozen path, "hidden"
            `[N, D]` on the tiled and the dense path, "logits" `[N, V]` on the path of full logits.
        head: the reference's own head, which the tiled and the dense path apply to "hidden"; else None.
    """

    values: Mapping[str, Tensor]
    head: Head | None = None


@dataclass(frozen=True)
class HeadPath:
    """One way from the policy's hidden states to `TokenStats`.

    Args:
        name: which way.
        why: the reason for it in a few words, empty for the frozen path.
        head: gives the policy's head as it is now; None where the model's logits are not a linear head on its body's
            hidden states.
    """

    name: PathName
    why: str
    head: Callable[[], Head] | None

    def describe(self) -> str:
        """The path and the reason for it, in a sentence for the log."""
        return SENTENCES[self.name].format(why=self.why)

    def policy_output(self, policy: Any, batch: ResponseBatch) -> Tensor:
        """What `token_stats` reads of the policy, with gradient: hidden states `[N, D]`, or full logits `[N, V]`."""
        read = select_logits if self.name == "logits" else response_hidden
        return read(policy, batch.model_inputs(), batch.response_index)

    def token_stats(
        self,
        policy_output: Tensor,
        reference: ReferencePart,
        targets: Tensor,
        *,
        extras: Collection[Extra] = (),
        learned_tokens: LearnedTokens | None = None,
    ) -> TokenStats:
        """Statistics `[N]` of `policy_output` beside what the reference says about the same tokens.

        Full logits have nothing to spare where a KL is not learned from, and do not ask.
        """
        if self.name == "logits":
            return token_stats(policy_output, reference.values["logits"], targets, extras=extras)
        assert self.head is not None
        if self.name == "frozen":
            summary = ReferenceSummary(**reference.values)
            return frozen_head_token_stats(
                policy_output, self.head(), summary, targets, extras=extras, learned_tokens=learned_tokens
            )
        assert reference.head is not None
        return linear_token_stats(
            policy_output,
            self.head(),
            reference.values["hidden"],
            reference.head,
            targets,
            extras=extras,
            impl=self.name,
            learned_tokens=learned_tokens,
        )

    def reference_entropy(self, reference: ReferencePart, targets: Tensor) -> Tensor:
        """Entropy `[N]` of the reference at each token, nats per token: that of a policy which is the reference."""
        output = reference.values["logits" if self.name == "logits" else "hidden"]
        head, extras = reference.head, frozenset[Extra]({"policy_entropy"})
        itself = self if head is None else replace(self, head=lambda: head)
        stats = itself.token_stats(output, reference, targets, extras=extras)
        assert stats.policy_entropy is not None
        return stats.policy_entropy


def choose_head_path(
    policy: Any, reference: Reference, impl: HeadImpl = "auto", extras: Collection[Extra] = ()
) -> HeadPath:
    """The fastest path that applies to both models and has the `extras`, or the one that `impl` names.

    Raises:
        ValueError: `impl` is "frozen", but policy and reference do not share one frozen head, or an extra needs both.
    """
    head = find_head(policy)
    if head is None or reference.head is None:
        why = (
            "it is quantised, so it has no weight that could be walked over"
            if has_quantized_head(policy)
            else "its logits are not a linear head, with scale and soft cap, on its body's hidden states"
        )
        if impl == "frozen":
            raise ValueError(f"head_impl='frozen' does not apply: {why}. Use 'auto'.")
        return HeadPath("logits", why, None)
    obstacle = _obstacle_to_frozen(head(), reference.head()) or _extra_without_frozen(extras)
    if impl == "frozen" and obstacle is not None:
        raise ValueError(f"head_impl='frozen' does not apply: {obstacle}. Use 'auto'.")
    if impl in ("tiled", "dense"):
        return HeadPath(impl, "as asked for", head)
    if obstacle is None:
        return HeadPath("frozen", "", head)
    return HeadPath("tiled", obstacle, head)


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


def _extra_without_frozen(extras: Collection[Extra]) -> str | None:
    if any(isinstance(extra, JensenShannon) for extra in extras):
        return "a Jensen–Shannon divergence needs both models at every entry of the vocabulary"
    return None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.shape == b.shape and torch.equal(a, b.to(a.device)))
