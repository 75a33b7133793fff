"""How far the kernels' KLs and gradients are from float64, beside the lines that are usually published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import oracle
from helpers.kernel_cases import (
    DEVICE,
    HALF,
    kernels,  # noqa: F401 - a fixture
    needs_triton,
    quiet,
    relative_difference,
    use_tiles_of,
)
from tdpo import Head, TokenStats, frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.divergences import jensen_shannon
from tdpo.token_statistics import JensenShannon

pytestmark = [needs_triton, quiet, pytest.mark.usefixtures("model_like")]


@pytest.fixture
def model_like(kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Two tiles of a vocabulary of 2000, a block each, and hidden states in one block."""
    use_tiles_of(1024, 1024, kernels)
    kernels.setattr("tdpo.token_statistics.cuda.products.SIZE_BLOCK", 64)


def operands(dtype: torch.dtype, drift: float, tokens: int) -> oracle.Operands:
    data = oracle.realistic_operands(dtype, drift=drift, tokens=tokens, vocabulary=2000)
    return oracle.Operands(*(tensor.to(DEVICE) for tensor in vars(data).values()))


def frozen(data: oracle.Operands) -> TokenStats:
    head = Head(data.weight)
    summary = summarize_reference(data.reference_hidden, head, data.targets)
    return frozen_head_token_stats(data.hidden, head, summary, data.targets, extras=["reverse_kl"])


def any_head(data: oracle.Operands, **options: Any) -> TokenStats:
    reference = data.reference_hidden, Head(data.weight.detach())
    return linear_token_stats(data.hidden, Head(data.weight), *reference, data.targets, **options)


def published(data: oracle.Operands) -> Tensor:
    """Logits in the dtype of their operands, as a model's head returns them; all after them in float32."""
    return oracle.naive_forward_kl(
        (data.hidden @ data.weight.T).float(), (data.reference_hidden @ data.weight.T).float()
    )


@pytest.mark.parametrize("path", [frozen, any_head])
def test_the_error_of_a_kl_is_at_most_a_fiftieth_of_the_published_lines(path: Callable[..., Any]) -> None:
    """In bfloat16, from 1e-3 to 1 nat: four sizes of KL, each judged by itself."""
    sizes = [operands(torch.bfloat16, drift, tokens=3) for drift in (0.015, 0.05, 0.15, 0.5)]
    hidden, reference, targets = (
        torch.cat([getattr(data, name) for data in sizes]) for name in ("hidden", "reference_hidden", "targets")
    )
    # One head in all of them: it is drawn first.
    kl = path(oracle.Operands(hidden, reference, sizes[0].weight, targets)).forward_kl
    for data, ours, size in zip(sizes, kl.split(3), (1e-3, 1e-2, 1e-1, 1.0), strict=True):
        exact = data.kl()
        assert 0.5 * size < exact.mean() < 2 * size
        error, theirs = oracle.relative_error(ours, exact), oracle.relative_error(published(data), exact)
        assert 0.003 < theirs < 1 and error <= theirs / 50, (size, error, theirs)


@pytest.mark.parametrize("dtype", HALF)
def test_small_kls_and_gradients_of_both_directions_with_a_frozen_head(dtype: torch.dtype) -> None:
    """Near 1e-3 nats: the KL within a thousandth, gradients within a hundredth."""
    data = operands(dtype, 0.015, tokens=4)
    data.hidden.requires_grad_()
    stats = frozen(data)
    wide = replace(data, hidden=data.hidden.detach().double().requires_grad_())
    exact = wide.kl()
    assert 2e-4 < exact.mean() < 2e-3
    assert oracle.relative_error(stats.forward_kl, exact.detach()) < 1e-3
    swapped = replace(wide, hidden=data.reference_hidden, reference_hidden=wide.hidden).kl()  # KL(p‖q)
    for ours, right in ((stats.forward_kl, exact), (stats.reverse_kl, swapped)):
        mine = torch.autograd.grad(ours.sum(), data.hidden, retain_graph=True)[0]  # type: ignore[union-attr]
        assert relative_difference(mine, torch.autograd.grad(right.sum(), wide.hidden)[0]) < 1e-2


@pytest.mark.parametrize("dtype", HALF)
def test_small_divergences_and_gradients_with_any_head(dtype: torch.dtype) -> None:
    data = operands(dtype, 0.015, tokens=4)
    leaves = [data.hidden.requires_grad_(), data.weight.requires_grad_()]
    stats: Any = any_head(data, extras=[JensenShannon(0.2)])
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    p, q = wide[0] @ wide[1].T, data.reference_hidden.double() @ wide[1].detach().T
    exact = (q.softmax(-1) * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1)
    assert 2e-4 < exact.mean() < 2e-3
    for value, exactly in ((stats.forward_kl, exact), (stats.jensen_shannon, jensen_shannon(p, q, 0.2))):
        assert oracle.relative_error(value, exactly.detach()) < 1e-3
        mine = torch.autograd.grad(value.sum(), leaves, retain_graph=True)
        for ours, right in zip(mine, torch.autograd.grad(exactly.sum(), wide, retain_graph=True), strict=True):
            assert relative_difference(ours, right) < 1e-2
