"""What runs between the matrix products of the frozen path: a program a row of one tile of logits."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .arithmetic import LN2, above_shift, logits, rounded, scaled, shrinkage, split


@triton.jit
def _write_weights(
    tile_row: tl.tensor,
    bias_ptr: tl.tensor,
    shift: tl.tensor,
    out_row: tl.tensor,
    columns: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
) -> Any:
    """Write UNIT·p̃ of one row, p̃ = exp(z)·2^-shift; returns Σ p̃ and Σ p̃·(z − shift·ln 2), float64."""
    total = tl.full([], 0.0, tl.float64)
    excess = tl.full([], 0.0, tl.float64)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        z = logits(tile_row, bias_ptr, column, inside, HAS_BIAS, SCALE, None)
        mantissa, power = split(z)
        weight = scaled(mantissa, power, shift)
        tl.store(out_row + column, rounded(weight * UNIT, out_row), mask=inside)
        total += tl.sum(weight).to(tl.float64)
        excess += tl.sum(tl.where(weight > 0.0, weight * above_shift(z, shift), 0.0)).to(tl.float64)
    return total, excess


@triton.jit
def _largest_power(
    tile_row: tl.tensor,
    bias_ptr: tl.tensor,
    columns: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
) -> Any:
    largest = tl.full([], -float("inf"), tl.float32)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        z = logits(tile_row, bias_ptr, column, column < columns, HAS_BIAS, SCALE, None)
        _, power = split(z)
        largest = tl.maximum(largest, tl.max(power))
    return largest


@triton.jit
def weigh_tile(
    tile_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    columns: tl.tensor,
    start: tl.tensor,
    shift_ptr: tl.tensor,
    total_ptr: tl.tensor,
    excess_ptr: tl.tensor,
    expected_ptr: tl.tensor,
    size: tl.tensor,
    likeliest_ptr: tl.tensor,
    computed_ptr: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    SIZE_BLOCKS: tl.constexpr,
    LIKELIEST: tl.constexpr,
    LIKELIEST_SLOTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
    LIMIT: tl.constexpr,
) -> None:
    """Turn one tile of products `[N, columns]` into weights, and add its sums to each row's.

    Where a row's weights exceed LIMIT at its shift (a policy that moved by dozens of nats, or a row without a shift),
    the shift rises to the row's largest power: what was gathered of the row shrinks, also its E `[size]`, and the row
    is written again. That decision stays in the program, so nothing waits for it.
    """
    row = tl.program_id(0).to(tl.int64)
    tile_row = tile_ptr + row * columns
    out_row = out_ptr + row * columns
    shift = tl.load(shift_ptr + row)
    total, excess = _write_weights(tile_row, bias_ptr, shift, out_row, columns, BLOCKS, BLOCK, HAS_BIAS, SCALE, UNIT)
    older_total = tl.load(total_ptr + row)
    older_excess = tl.load(excess_ptr + row)
    if (total <= LIMIT) == False:  # noqa: E712 - NaN too; `not` is no operation of the compiler
        largest = _largest_power(tile_row, bias_ptr, columns, BLOCKS, BLOCK, HAS_BIAS, SCALE)
        higher = tl.maximum(shift, largest)
        shrink = shrinkage(shift, higher)
        for block in range(SIZE_BLOCKS):
            place = block * BLOCK + tl.arange(0, BLOCK)
            expected = tl.load(expected_ptr + row * size + place, mask=place < size, other=0.0)
            tl.store(expected_ptr + row * size + place, expected * shrink.to(tl.float32), mask=place < size)
        lower = (shift - higher).to(tl.float64) * LN2
        older_excess = shrink * (older_excess + lower * older_total)
        older_total = shrink * older_total
        shift = higher
        tl.debug_barrier()  # the first writing of the row must not come after the second
        total, excess = _write_weights(
            tile_row, bias_ptr, shift, out_row, columns, BLOCKS, BLOCK, HAS_BIAS, SCALE, UNIT
        )
    tl.store(shift_ptr + row, shift)
    tl.store(total_ptr + row, older_total + total)
    tl.store(excess_ptr + row, older_excess + excess)
    if LIKELIEST > 0:
        slot = tl.arange(0, LIKELIEST_SLOTS)
        column = tl.load(likeliest_ptr + row * LIKELIEST + slot, mask=slot < LIKELIEST, other=-1).to(tl.int32) - start
        here = (column >= 0) & (column < columns)
        z = logits(tile_row, bias_ptr, column, here, HAS_BIAS, SCALE, None)
        tl.store(computed_ptr + row * LIKELIEST + slot, z, mask=here)


@triton.jit
def write_remainders(
    tile_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    columns: tl.tensor,
    shift_ptr: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    UNIT: tl.constexpr,
) -> None:
    """What rounding took from the weights that `weigh_tile` wrote, as a second number of the same dtype."""
    row = tl.program_id(0).to(tl.int64)
    tile_row = tile_ptr + row * columns
    out_row = out_ptr + row * columns
    shift = tl.load(shift_ptr + row)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        z = logits(tile_row, bias_ptr, column, inside, HAS_BIAS, SCALE, None)
        mantissa, power = split(z)
        weight = scaled(mantissa, power, shift) * UNIT
        remainder = weight - rounded(weight, out_row).to(tl.float32)
        tl.store(out_row + column, rounded(remainder, out_row), mask=inside)


@triton.jit
def write_group_maxima(
    tile_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    BLOCKS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
) -> None:
    """The largest logit of each GROUP neighbours of a tile, `[N, groups]`."""
    row = tl.program_id(0).to(tl.int64)
    for block in range(BLOCKS):
        group = block * GROUPS + tl.arange(0, GROUPS)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        z = logits(tile_ptr + row * columns, bias_ptr, column, column < columns, HAS_BIAS, SCALE, None)
        tl.store(out_ptr + row * groups + group, tl.max(z, axis=1), mask=group < groups)
