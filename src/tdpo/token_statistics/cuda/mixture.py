"""The Jensen–Shannon divergence of one entry of the vocabulary, for the passes.

With w the reference's share, the mixture is m = w·q + (1 − w)·p. Of one entry let `large` be the larger of p and q, and
`share` the share of the other one, whose ratio to `large` is 1 + u = exp(−|log q − log p|). Then m = large·(1 + y) with
y = share·u, and with l(x) = x − log(1 + x), which is of second order,

    w·q·log(q/m) + (1 − w)·p·log(p/m) = large·(share·(1 − share)·u² − share·(1 + u)·l(u) + (1 + y)·l(y)).

So near models lose no digits: what is of first order in their gap has cancelled before anything is rounded. u and y lie
in [−1, 0] however far the models are apart, and where one of them lacks an entry u is −1. A weight near 0 or 1 costs up
to a factor 1/w or 1/(1 − w) of float32's precision.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _shortfall(x: tl.tensor, logarithm: tl.tensor) -> Any:
    """x − log(1 + x) for −1 ≤ x ≤ 0, `logarithm` being log(1 + x): by a series where the two cancel."""
    s = x / (2.0 + x)  # log(1 + x) = 2·artanh(s), and x − 2·s = s·x
    square = s * s
    tail = 1.0 / 3.0 + square * (1.0 / 5.0 + square * (1.0 / 7.0 + square * (1.0 / 9.0 + square * (1.0 / 11.0))))
    return tl.where(x > -0.4, s * x - 2.0 * s * square * tail, x - logarithm)


@triton.jit
def _below_one(distance: tl.tensor) -> Any:
    """exp(−distance) − 1 for a distance ≥ 0, +inf too: by a series where it cancels."""
    d = distance
    tail = 1.0 / 24.0 - d * (1.0 / 120.0 - d * (1.0 / 720.0 - d * (1.0 / 5040.0 - d * (1.0 / 40320.0))))
    near = -d * (1.0 - d * (0.5 - d * (1.0 / 6.0 - d * tail)))
    return tl.where(d < 0.5, near, tl.exp(-d) - 1.0)


@triton.jit
def log_gap(z: tl.tensor, z_ref: tl.tensor, apart: tl.tensor) -> Any:
    """log q − log p of logits, `apart` being log Z − log Z_ref; 0 where both models lack the entry."""
    nowhere = (z == -float("inf")) & (z_ref == -float("inf"))
    return tl.where(nowhere, 0.0, (z_ref - z) + apart)


@triton.jit
def below_mixture(gap: tl.tensor, WEIGHT: tl.constexpr) -> Any:
    """log p − log m of an entry with the gap log q − log p, and its part of the divergence in units of max(p, q).

    Where the policy lacks the entry, the first one is −inf.
    """
    share = tl.where(gap > 0.0, 1.0 - WEIGHT, WEIGHT)
    rest = tl.where(gap > 0.0, WEIGHT, 1.0 - WEIGHT)
    distance = tl.abs(gap)
    u = _below_one(distance)
    ratio = 1.0 + u
    y = share * u
    mixture = rest + share * ratio  # 1 + y, also where y rounds to −1
    of_u = _shortfall(u, -distance)
    of_y = _shortfall(y, tl.log(mixture))
    of_smaller = tl.where(ratio > 0.0, ratio * of_u, 0.0)  # 0·∞ where one model lacks the entry
    divergence = share * (rest * u * u - of_smaller) + mixture * of_y
    return of_y - tl.where(gap > 0.0, of_u - rest * u, y), divergence
