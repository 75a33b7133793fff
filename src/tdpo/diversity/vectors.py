"""How much sentence embeddings differ: mean cosine, Vendi score. Computed in float64 on the CPU for any input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Embeddings = Tensor | NDArray[Any] | Sequence[Sequence[float]]


def embedding_diversity(embeddings: Embeddings) -> float | None:
    """1 − mean cosine over the pairs of different rows of `embeddings` `[K, D]`, in [0, K/(K − 1)].

    0 for one direction, 1 for orthogonal rows, above 1 only where rows point away from one another. The embedding
    metric of Kirk et al. 2024 (arXiv 2310.06452), after Tevet and Berant 2021 (arXiv 2004.02990). Rows of zeros stand
    for responses without words and are ignored; None if fewer than two others remain. Raises ValueError for anything
    but a matrix of finite numbers.
    """
    rows = _unit_rows(embeddings)
    if len(rows) < 2:
        return None
    # For unit rows 1 − cosine is half a squared distance, and its mean over pairs is the rows' variance. Unlike the
    # difference of two sums near 1, this is 0 for equal rows and never negative.
    return float((rows - rows.mean(0)).square().sum() / (len(rows) - 1))


def vendi_score(embeddings: Embeddings) -> float | None:
    """exp(−Σ λ log λ) with λ the eigenvalues of the cosine kernel of `embeddings` `[K, D]` divided by K, in [1, K].

    The effective number of different rows (Friedman and Dieng 2023, arXiv 2210.02410): 1 where all
    point in one direction, K where all are orthogonal. Rows of zeros are ignored as in `embedding_diversity`; None if
    fewer than two others remain. Raises ValueError for anything but a matrix of finite numbers.
    """
    rows = _unit_rows(embeddings)
    if len(rows) < 2:
        return None
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T / len(rows)).clamp_min(0.0)
    score = math.exp(float(torch.special.entr(eigenvalues / eigenvalues.sum()).sum()))
    return min(max(score, 1.0), float(len(rows)))


def as_rows(embeddings: Embeddings, *, blank: Sequence[bool] | None = None) -> Tensor:
    """A float64 copy `[K, D]` of `embeddings`, with zeros in the rows that are `blank`.

    Raises ValueError if it is no matrix, or if a row that is not blank contains NaN or infinity.
    """
    if isinstance(embeddings, Sequence):
        rows = torch.stack([_float64(row) for row in embeddings]) if embeddings else torch.zeros(0, 0).double()
    else:
        rows = _float64(embeddings)
    if rows.dim() != 2:
        raise ValueError(f"embeddings must be a matrix [outputs, dimension], not of shape {tuple(rows.shape)}")
    if blank is not None:
        rows[torch.tensor(blank, dtype=torch.bool)] = 0.0
    broken = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"the embeddings of outputs {broken[:5]} hold NaN or infinity; embed these texts again")
    return rows


def _float64(numbers: Any) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers.detach().to("cpu", torch.float64, copy=True)
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _unit_rows(embeddings: Embeddings) -> Tensor:
    rows = as_rows(embeddings)
    norms = rows.norm(dim=1)
    return rows[norms > 0] / norms[norms > 0, None]
