"""Exponentials for the passes: every scale is a power of two, so that no sum depends on the scale it was taken at.

A logit is split into z = log(mantissa) + power·ln 2 with a whole `power` (nats; Cody and Waite's reduction). A weight
exp(z) at the scale of a row is then mantissa·2^(power − shift), with a whole `shift`. Two walks with other shifts give
the same bits up to an exact factor: the KL of two equal models is 0 although one walk knew the shift and one did not.

The kernels are launched without fused multiply-add contraction, so that a function gives the same bits in each of them.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# ln 2 in two parts: a power of up to 12 bits times the first is exact in float32.
LN2_HIGH: tl.constexpr = tl.constexpr(0.693145751953125)
LN2_LOW: tl.constexpr = tl.constexpr(1.42860682030941723212e-6)
# The same for float64: the first part has 32 trailing zeros.
LN2_HIGH64: tl.constexpr = tl.constexpr(6.93147180369123816490e-01)
LN2_LOW64: tl.constexpr = tl.constexpr(1.90821492927058770002e-10)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# The interpreter cuts bits off where a GPU rounds to the nearest bfloat16.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def split(z: tl.tensor) -> Any:
    """(mantissa, power) of float32 logits, z = log(mantissa) + power·ln 2; the mantissa lies in [0.7, 1.42]."""
    power = tl.floor(z * LOG2_E + 0.5)
    return tl.exp((z - power * LN2_HIGH) - power * LN2_LOW), power


@triton.jit
def split_wide(z: tl.tensor) -> Any:
    """`split` of float64 logits."""
    power = tl.floor(z * LOG2_E + 0.5)
    return tl.exp((z - power * LN2_HIGH64) - power * LN2_LOW64), power


@triton.jit
def scaled(mantissa: tl.tensor, power: tl.tensor, shift: tl.tensor) -> Any:
    """mantissa·2^(power − shift) in float32: 0 below 2^-126, +inf from 2^128 on, NaN where the logit was."""
    exponent = power - shift
    vanishes = exponent < -126.0
    bounded = tl.where(vanishes, 0.0, tl.minimum(exponent, 128.0))
    factor = ((bounded.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    # A selection and no product with 0: the mantissa of −inf is NaN.
    return tl.where(vanishes, 0.0, mantissa * factor)


@triton.jit
def scaled_wide(mantissa: tl.tensor, power: tl.tensor, shift: tl.tensor) -> Any:
    """`scaled` in float64: 0 below 2^-1022, +inf from 2^1024 on."""
    exponent = power - shift
    vanishes = exponent < -1022.0
    bounded = tl.where(vanishes, 0.0, tl.minimum(exponent, 1024.0))
    factor = ((bounded.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return tl.where(vanishes, 0.0, mantissa * factor)


@triton.jit
def shrinkage(old: tl.tensor, new: tl.tensor) -> Any:
    """2^(old − new), exact, float64: the factor by which sums shrink when a row's shift rises from `old` to `new`."""
    return scaled_wide(tl.full([], 1.0, tl.float64), old.to(tl.float64), new.to(tl.float64))


@triton.jit
def above_shift(z: tl.tensor, shift: tl.tensor) -> Any:
    """z − shift·ln 2, exact where z is near."""
    return (z - shift * LN2_HIGH) - shift * LN2_LOW


@triton.jit
def hyperbolic_tangent(x: tl.tensor) -> Any:
    """tanh(x), to some 1e-7 of its value: a series near 0, where the formula of exponentials cancels."""
    size = tl.abs(x)
    decayed = tl.exp(-2.0 * size)
    far = (1.0 - decayed) / (1.0 + decayed)
    square = x * x
    tail = 2.0 / 15.0 + square * (-17.0 / 315.0 + square * (62.0 / 2835.0 - square * (1382.0 / 155925.0)))
    near = size * (1.0 + square * (-1.0 / 3.0 + square * tail))
    value = tl.where(size < 0.25, near, far)
    return tl.where(x < 0.0, -value, value)


@triton.jit
def logits(
    row_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
) -> Any:
    """cap(scale·(product + bias)) at some columns of one tile row, float32; −inf outside. SOFTCAP may be None."""
    z = tl.load(row_ptr + column, mask=inside, other=0.0)
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if SCALE != 1.0:
        z *= SCALE
    if SOFTCAP is not None:
        z = SOFTCAP * hyperbolic_tangent(z / SOFTCAP)
    return tl.where(inside, z, -float("inf"))


@triton.jit
def _nearest_bfloat16(value: tl.tensor) -> Any:
    """float32 `value` at the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = value.to(tl.uint32, bitcast=True)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(value == value, nearest, value)


@triton.jit
def rounded(value: tl.tensor, like_ptr: tl.tensor) -> Any:
    """float32 `value`, rounded to the nearest number of the dtype that `like_ptr` points at."""
    dtype: tl.constexpr = like_ptr.dtype.element_ty
    if INTERPRETED and dtype == tl.bfloat16:
        value = _nearest_bfloat16(value)
    return value.to(dtype)
