"""The oracle: every statistic by explicit sums in float64 numpy, with nothing taken from the library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def as_array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def expectation(weight_logp: Array, logp: Array, other_logp: Array) -> float:
    """Σ p·(log a − log b) of one position, over the entries that p supports."""
    total = 0.0
    for lp, a, b in zip(weight_logp, logp, other_logp, strict=True):
        if lp > -np.inf:
            total += float(np.inf if b == -np.inf else np.exp(lp) * (a - b))
    return total


@dataclass(frozen=True)
class Statistics:
    policy_logp: Array
    reference_logp: Array
    forward_kl: Array
    reverse_kl: Array
    policy_entropy: Array


def statistics(policy_logits: Tensor, reference_logits: Tensor, targets: Tensor) -> Statistics:
    """All statistics of `[N, V]` logits at `[N]` targets."""
    policy = log_probabilities(as_array(policy_logits))
    reference = log_probabilities(as_array(reference_logits))
    rows = range(len(policy))
    own = [int(t) for t in targets]
    zero = np.zeros(policy.shape[-1])
    return Statistics(
        np.array([policy[n, own[n]] for n in rows]),
        np.array([reference[n, own[n]] for n in rows]),
        np.array([expectation(reference[n], reference[n], policy[n]) for n in rows]),
        np.array([expectation(policy[n], policy[n], reference[n]) for n in rows]),
        np.array([-expectation(policy[n], policy[n], zero) for n in rows]),
    )


def head_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """cap(scale·(h·Wᵀ + b)) in float64, differentiable."""
    z = torch.einsum("nd,vd->nv", hidden.double(), weight.double())
    if bias is not None:
        z = z + bias.double()
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def naive_forward_kl(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """The computation as it is usually published, in the dtype of its inputs."""
    reference = reference_logits.softmax(-1)
    return (reference * (reference.log() - policy_logits.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class Operands:
    """Hidden states and one head, in one dtype, with logits and KLs of the size that language models have."""

    hidden: Tensor
    reference_hidden: Tensor
    weight: Tensor
    targets: Tensor

    def kl(self) -> Tensor:
        """KL(reference‖policy) of these very operands in float64."""
        policy = head_logits(self.hidden, self.weight).log_softmax(-1)
        reference = head_logits(self.reference_hidden, self.weight).log_softmax(-1)
        return (reference.exp() * (reference - policy)).sum(-1)


def realistic_operands(
    dtype: torch.dtype, *, drift: float = 0.015, tokens: int = 48, vocabulary: int = 5000, size: int = 64
) -> Operands:
    """Logits up to about 15 in size; `drift` 0.015 puts the mean KL near 1e-3 nats."""
    make = torch.Generator().manual_seed(7)
    weight = torch.randn(vocabulary, size, generator=make).mul(0.5).to(dtype)
    reference = torch.randn(tokens, size, generator=make)
    largest = (reference @ weight.float().T).abs().amax(dim=1, keepdim=True)
    reference = reference * (torch.linspace(10, 15, tokens)[:, None] / largest)
    policy = reference + drift * reference.std() * torch.randn(tokens, size, generator=make)
    targets = torch.randint(0, vocabulary, (tokens,), generator=make)
    return Operands(policy.to(dtype), reference.to(dtype), weight, targets)


def relative_error(kl: Tensor, exact: Tensor) -> float:
    """Mean error over tokens relative to the mean KL."""
    return ((kl.double() - exact).abs().mean() / exact.mean()).item()
