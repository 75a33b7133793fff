"""Passes that read a few rows of the head for each token, in float64: exact logits, and what they correct."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .arithmetic import LN2, rounded, scaled, scaled_wide, split, split_wide


@triton.jit
def _head_rows(
    weight_ptr: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    entry: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    operand_ptr: tl.tensor,
) -> Any:
    """Some entries' rows of the head as the products took them, which is rounded to the operands' dtype; float64."""
    at = weight_ptr + entry[:, None] * row_stride + place[None, :].to(tl.int64) * column_stride
    return rounded(tl.load(at, mask=inside, other=0.0).to(tl.float32), operand_ptr).to(tl.float64)


@triton.jit
def _exact_logits(
    hidden_row: tl.tensor,
    weight_ptr: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    bias_ptr: tl.tensor,
    entry: tl.tensor,
    real: tl.tensor,
    size: tl.tensor,
    SIZE_BLOCKS: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
) -> Any:
    """scale·(h·W_v + b_v) of some entries v, float64 `[SLOTS]`; 0 where the slot is not `real`."""
    product = tl.zeros([SLOTS], tl.float64)
    for block in range(SIZE_BLOCKS):
        place = block * SIZE_BLOCK + tl.arange(0, SIZE_BLOCK)
        h = tl.load(hidden_row + place, mask=place < size, other=0.0).to(tl.float64)
        inside = real[:, None] & (place < size)[None, :]
        w = _head_rows(weight_ptr, row_stride, column_stride, entry, place, inside, hidden_row)
        product += tl.sum(w * h[None, :], axis=1)
    if HAS_BIAS:
        product += tl.load(bias_ptr + entry, mask=real, other=0.0).to(tl.float64)
    return product * SCALE


@triton.jit
def write_exact_logits(
    hidden_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    bias_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    out_ptr: tl.tensor,
    size: tl.tensor,
    SIZE_BLOCKS: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
) -> None:
    """Logits `[N, ENTRIES]` of named entries of the vocabulary, float64."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    real = slot < ENTRIES
    entry = tl.load(entries_ptr + row * ENTRIES + slot, mask=real, other=0).to(tl.int64)
    z = _exact_logits(
        hidden_ptr + row * size, weight_ptr, row_stride, column_stride, bias_ptr, entry, real, size,
        SIZE_BLOCKS, SIZE_BLOCK, SLOTS, HAS_BIAS, SCALE,
    )  # fmt: skip
    tl.store(out_ptr + row * ENTRIES + slot, z, mask=real)


@triton.jit
def correct_and_normalise(
    hidden_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    bias_ptr: tl.tensor,
    likeliest_ptr: tl.tensor,
    computed_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    total_ptr: tl.tensor,
    excess_ptr: tl.tensor,
    expected_ptr: tl.tensor,
    size: tl.tensor,
    SIZE_BLOCKS: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    LIKELIEST: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    PAIR: tl.constexpr,
) -> None:
    """Add what products and rounding took from the likeliest entries, then make Σ UNIT·p̃·W the expectation E[scale·W].

    `computed` `[N, LIKELIEST]` are the tile's logits of those entries. Their weights are computed again from them, as
    `weigh_tile` summed them and as the product took them: rounded to the dtype of `weights`, with PAIR as two numbers.
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    real = slot < LIKELIEST
    shift = tl.load(shift_ptr + row)
    entry = tl.load(likeliest_ptr + row * LIKELIEST + slot, mask=real, other=0).to(tl.int64)
    exact_z = _exact_logits(
        hidden_ptr + row * size, weight_ptr, row_stride, column_stride, bias_ptr, entry, real, size,
        SIZE_BLOCKS, SIZE_BLOCK, SLOTS, HAS_BIAS, SCALE,
    )  # fmt: skip
    mantissa, power = split_wide(exact_z)
    wide_shift = shift.to(tl.float64)
    exact = tl.where(real, scaled_wide(mantissa, power, wide_shift), 0.0)

    z = tl.load(computed_ptr + row * LIKELIEST + slot, mask=real, other=-float("inf"))
    computed_mantissa, computed_power = split(z)
    weight = scaled(computed_mantissa, computed_power, shift)
    multiplied = rounded(weight * UNIT, weights_ptr).to(tl.float32)
    if PAIR:
        multiplied += rounded(weight * UNIT - multiplied, weights_ptr).to(tl.float32)
    summed = weight.to(tl.float64)

    total = tl.load(total_ptr + row) + tl.sum(exact - summed)
    tl.debug_barrier()  # every thread uses the total, so all have read it before one writes
    exact_excess = tl.where(exact > 0.0, exact * (exact_z - wide_shift * LN2), 0.0)
    excess = tl.where(weight > 0.0, summed * (z.to(tl.float64) - wide_shift * LN2), 0.0)
    tl.store(total_ptr + row, total)
    tl.store(excess_ptr + row, tl.load(excess_ptr + row) + tl.sum(exact_excess - excess))

    missing = (exact * UNIT - multiplied.to(tl.float64))[:, None]
    norm = SCALE / (total * UNIT)
    for block in range(SIZE_BLOCKS):
        place = block * SIZE_BLOCK + tl.arange(0, SIZE_BLOCK)
        inside = real[:, None] & (place < size)[None, :]
        w = _head_rows(weight_ptr, row_stride, column_stride, entry, place, inside, hidden_ptr)
        expected_row = expected_ptr + row * size + place
        expected = tl.load(expected_row, mask=place < size, other=0.0).to(tl.float64)
        expected = (expected + tl.sum(missing * w, axis=0)) * norm
        tl.store(expected_row, expected.to(tl.float32), mask=place < size)


@triton.jit
def write_row_dots(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    out_ptr: tl.tensor,
    size: tl.tensor,
    SIZE_BLOCKS: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
) -> None:
    """Σ_d a·b of each row of `[N, size]`, float64 `[N]`."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.full([], 0.0, tl.float64)
    for block in range(SIZE_BLOCKS):
        place = block * SIZE_BLOCK + tl.arange(0, SIZE_BLOCK)
        a = tl.load(a_ptr + row * size + place, mask=place < size, other=0.0).to(tl.float64)
        b = tl.load(b_ptr + row * size + place, mask=place < size, other=0.0).to(tl.float64)
        total += tl.sum(a * b)
    tl.store(out_ptr + row, total)
