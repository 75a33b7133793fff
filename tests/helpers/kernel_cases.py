"""The head's kernels on small shapes: on the GPU where there is one, else in Triton's interpreter on a CPU."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.devices import device
from tdpo import Head, TokenStats
from tdpo.token_statistics.cuda import choice, products
from tdpo.token_statistics.cuda.self_check import kernels_agree

DEVICE = device()
HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed; there is no interpreter of kernels")
# The interpreter computes with numpy, which warns of the infinities and NaN of masked entries.
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The kernels run, in tiles of 32 columns of one block. Returns the patch, for other tiles."""
    monkeypatch.setattr(choice, "in_interpreter", DEVICE == "cpu")
    use_tiles_of(128, 128, monkeypatch)  # of one tile the interpreter makes less work
    for dtype in DTYPES if HAS_TRITON else ():  # asked once, before anything is measured or counted
        assert kernels_agree(torch.device(DEVICE), dtype)
    use_tiles_of(32, 32, monkeypatch)
    monkeypatch.setattr(products, "SIZE_BLOCK", 8)
    return monkeypatch


def use_tiles_of(width: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDEST": width, "NARROWEST": block, "BLOCK": block, "PAIR_BLOCK": block}.items():
        monkeypatch.setattr(products, name, value)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdpo.token_statistics.cuda.kernels_apply", lambda *tensors: False)


def make_head(dtype: torch.dtype, vocabulary: int, size: int, **options: Any) -> Head:
    bias = torch.randn(vocabulary).to(DEVICE) if options.pop("bias", False) else None
    return Head(torch.randn(vocabulary, size).to(dtype).to(DEVICE), bias, **options)


@dataclass
class KernelCase:
    """N tokens of both models over V entries, with a weight for every statistic of every token."""

    hidden: Tensor
    head: Head
    reference: Tensor
    reference_head: Head
    targets: Tensor

    def arguments(self) -> tuple[Tensor, Head, Tensor, Head, Tensor]:
        return self.hidden, self.head, self.reference, self.reference_head, self.targets

    def leaves(self, trained_head: bool = True) -> list[Tensor]:
        head = [self.head.weight, *([] if self.head.bias is None else [self.head.bias])] if trained_head else []
        return [leaf.requires_grad_() for leaf in (self.hidden, *head)]

    def wide(self) -> KernelCase:
        """The same numbers in float64, which no kernel takes, detached."""

        def widened(head: Head) -> Head:
            bias = None if head.bias is None else head.bias.detach().double()
            return replace(head, weight=head.weight.detach().double(), bias=bias)

        hidden, reference = self.hidden.detach().double(), self.reference.detach().double()
        shared = self.head is self.reference_head
        head = widened(self.head)
        return KernelCase(hidden, head, reference, head if shared else widened(self.reference_head), self.targets)


def frozen_case(
    dtype: torch.dtype, tokens: int = 3, vocabulary: int = 40, size: int = 5, step: float = 0.3, **options: Any
) -> KernelCase:
    """One head for both models, whose hidden states lie a `step` apart."""
    torch.manual_seed(3)
    head = make_head(dtype, vocabulary, size, **options)
    reference = torch.randn(tokens, size)
    hidden = reference + step * torch.randn(tokens, size)
    targets = torch.tensor([0, vocabulary - 1, vocabulary // 2, vocabulary // 2])[torch.arange(tokens) % 4]
    return KernelCase(hidden.to(dtype).to(DEVICE), head, reference.to(dtype).to(DEVICE), head, targets.to(DEVICE))


def any_case(
    dtype: torch.dtype, tokens: int = 3, vocabulary: int = 40, size: int = 5, reference_size: int = 7, **options: Any
) -> KernelCase:
    """Two heads, of hidden states of different size."""
    case = frozen_case(dtype, tokens, vocabulary, size, **options)
    case.reference_head = make_head(dtype, vocabulary, reference_size, **options)
    case.reference = torch.randn(tokens, reference_size).to(dtype).to(DEVICE)
    return case


NAMES = ("policy_logp", "reference_logp", "forward_kl", "reverse_kl", "policy_entropy", "jensen_shannon")


def assert_close(ours: TokenStats, exact: TokenStats, tolerance: float = 3e-6, reverse: float = 0.0) -> None:
    """Every statistic that both have, within the tolerance of max(1, its size); infinities where the other has them.

    `reverse` is further room for the reverse KL, in nats.
    """
    for name in NAMES:
        mine, right = getattr(ours, name, None), getattr(exact, name, None)
        if mine is not None and right is not None:
            assert mine.dtype == torch.float32, name
            room = tolerance + (reverse if name == "reverse_kl" else 0.0)
            assert torch.allclose(mine.double(), right.double(), rtol=tolerance, atol=room), (name, mine, right)


def relative_difference(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30)).item()
