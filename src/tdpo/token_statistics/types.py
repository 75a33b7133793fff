"""Types of the statistics: a head, the summary of a reference, and the result. Shapes: see the package's legend."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int

NamedExtra = Literal["reverse_kl", "policy_entropy"]
Impl = Literal["auto", "tiled", "dense"]
# By the name of a KL in `TokenStats`, the tokens whose KL is learned from; for the others it is a constant.
LearnedTokens = Mapping[str, range]


@dataclass(frozen=True)
class JensenShannon:
    """An extra: the Jensen–Shannon divergence w·KL(q‖m) + (1 − w)·KL(p‖m), m = w·q + (1 − w)·p.

    q is the reference, p the policy, and `weight` is w, the reference's share of the mixture.

    Raises:
        ValueError: the weight is not strictly between 0 and 1.
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < 1.0:
            raise ValueError(f"weight must lie strictly between 0 and 1, got {self.weight}")


Extra = NamedExtra | JensenShannon


def mixture_of(extras: Collection[Extra]) -> JensenShannon | None:
    """The Jensen–Shannon divergence among the extras, of which there is at most one; None where there is none."""
    return next((extra for extra in extras if isinstance(extra, JensenShannon)), None)


@dataclass(frozen=True)
class TokenStats:
    """Statistics of N response tokens, `[N]` each, float32 (float64 in → float64 out), nats per token.

    `policy_logp` and `reference_logp` are the log-probabilities of the token itself; `forward_kl` is
    KL(π_ref‖π) over the whole vocabulary at its position (arXiv 2404.11999, eq. 8); `reverse_kl` is
    KL(π‖π_ref) and `policy_entropy` the entropy of π there, both None unless asked for.
    """

    policy_logp: Float[Tensor, " N"]
    reference_logp: Float[Tensor, " N"]
    forward_kl: Float[Tensor, " N"]
    reverse_kl: Float[Tensor, " N"] | None = None
    policy_entropy: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class MixtureTokenStats(TokenStats):
    """TokenStats where `JensenShannon` was asked for: `jensen_shannon` `[N]`, nats per token, always finite."""

    jensen_shannon: Float[Tensor, " N"] | None = None


@dataclass(frozen=True)
class Head:
    """The last layer of a language model: logits = cap(scale·(h·weightᵀ + bias)).

    `weight` is `[V, D]`, `bias` `[V]` or None; `softcap` c maps z to c·tanh(z/c) (Gemma 2), None does not;
    `scale` multiplies the raw logits (Cohere, Granite).

    Raises:
        ValueError: shapes that do not fit, a scale that is not finite, a softcap that is not positive.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ValueError(f"a head's weight must be [V, D], got shape {tuple(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"a head's bias must be [V] = [{self.weight.shape[0]}], got {tuple(self.bias.shape)}")
        if not math.isfinite(self.scale):
            raise ValueError(f"a head's scale must be finite, got {self.scale}")
        if self.softcap is not None and not (self.softcap > 0 and math.isfinite(self.softcap)):
            raise ValueError(f"a head's softcap must be positive and finite, or None, got {self.softcap}")

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Dense logits `[N, V]` of hidden states `[N, D]`, float32 also from half-precision operands."""
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            z = hidden.to(dtype) @ self.weight.to(dtype).T
            if self.bias is not None:
                z = z + self.bias.to(dtype)
        z = z * self.scale if self.scale != 1.0 else z
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap is not None else z


@dataclass(frozen=True)
class ReferenceSummary:
    """All that a policy with the *same frozen head* needs to know of the reference, exactly.

    `expected_weight` `[N, D]` is e = E_q[scale·W_v], q being the reference's distribution: float32 whatever
    the model's dtype (float64 in → float64 out), since in bf16 the KL would be 12 % off at 2e-4 nats.
    `offset` `[N]`, float64, is e·h_ref − logZ(h_ref): two large numbers whose difference the KL needs.
    `reference_logp` `[N]` is that of TokenStats. `likeliest` `[N, K]` int32 names the reference's likeliest tokens,
    whose logits are corrected to float64 (K is 16, or less where the vocabulary is tiny); without it small KLs of
    confident models are less exact. `hidden` `[N, D]` is h_ref itself, which only the reverse KL needs.
    """

    expected_weight: Float[Tensor, "N D"]
    offset: Float64[Tensor, " N"]
    reference_logp: Float[Tensor, " N"]
    likeliest: Int[Tensor, "N K"] | None = None
    hidden: Float[Tensor, "N D"] | None = None
