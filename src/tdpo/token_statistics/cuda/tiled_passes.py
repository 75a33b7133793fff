"""What runs between the matrix products of the any-head path: a program a row of both models' tile.

The forward pass adds a tile to each row's sums, which lie in a float64 table `[N, SUMS]`; the backward pass turns the
recomputed tile into its gradient, with what the forward pass and the loss left of each row in a table
`[N, COEFFICIENTS]`. `tiled.py` names their columns, in the order of the loads here.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .arithmetic import LN2, above_shift, logits, rounded, scaled, shrinkage, split
from .mixture import below_mixture, log_gap

# Columns of the two tables.
SUMS: tl.constexpr = tl.constexpr(14)
COEFFICIENTS: tl.constexpr = tl.constexpr(14)
# What a block's weights may sum to before their row gets another scale: more than a block of equal ones, and rare.
LIMIT: tl.constexpr = tl.constexpr(65536.0)


@triton.jit
def add_tile(
    policy_ptr: tl.tensor,
    policy_bias_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    reference_bias_ptr: tl.tensor,
    targets_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    columns: tl.tensor,
    start: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    POLICY_BIAS: tl.constexpr,
    POLICY_SCALE: tl.constexpr,
    POLICY_SOFTCAP: tl.constexpr,
    REFERENCE_BIAS: tl.constexpr,
    REFERENCE_SCALE: tl.constexpr,
    REFERENCE_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    ENTROPY: tl.constexpr,
) -> None:
    """Add one tile of both models' products `[N, columns]` to each row's sums.

    Weights are p̃ = exp(z)·2^-shift, with a shift of their own for each model; where their sum exceeds LIMIT, the shift
    rises to the block's largest power and what was gathered shrinks.
    """
    row = tl.program_id(0).to(tl.int64)
    policy_row = policy_ptr + row * columns
    reference_row = reference_ptr + row * columns
    sums = sums_ptr + row * SUMS
    shift = tl.load(sums).to(tl.float32)
    total = tl.load(sums + 1)
    shift_q = tl.load(sums + 2).to(tl.float32)
    total_q = tl.load(sums + 3)
    gap_q = tl.load(sums + 4)  # Σ q̃·(z_ref − z)
    gap_p = tl.load(sums + 5)  # Σ p̃·(z_ref − z)
    excess = tl.load(sums + 6)  # Σ p̃·(z − shift·ln 2)
    policy_lacks = tl.load(sums + 9).to(tl.int32)
    reference_lacks = tl.load(sums + 10).to(tl.int32)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        z = logits(policy_row, policy_bias_ptr, column, inside, POLICY_BIAS, POLICY_SCALE, POLICY_SOFTCAP)
        z_ref = logits(
            reference_row, reference_bias_ptr, column, inside, REFERENCE_BIAS, REFERENCE_SCALE, REFERENCE_SOFTCAP
        )
        mantissa, power = split(z)
        mantissa_q, power_q = split(z_ref)
        p = scaled(mantissa, power, shift)
        q = scaled(mantissa_q, power_q, shift_q)
        sum_p = tl.sum(p)
        sum_q = tl.sum(q)
        if ((sum_p <= LIMIT) & (sum_q <= LIMIT)) == False:  # noqa: E712 - NaN too
            higher = tl.maximum(shift, tl.max(power))
            higher_q = tl.maximum(shift_q, tl.max(power_q))
            shrink = shrinkage(shift, higher)
            shrink_q = shrinkage(shift_q, higher_q)
            excess = shrink * (excess + (shift - higher).to(tl.float64) * LN2 * total)
            total = shrink * total
            gap_p = shrink * gap_p
            total_q = shrink_q * total_q
            gap_q = shrink_q * gap_q
            shift = higher
            shift_q = higher_q
            p = scaled(mantissa, power, shift)
            q = scaled(mantissa_q, power_q, shift_q)
            sum_p = tl.sum(p)
            sum_q = tl.sum(q)
        # Only a bias can mask an entry, with −inf. Columns outside the tile are −inf in both models.
        masked = z == -float("inf")
        masked_ref = z_ref == -float("inf")
        gap = tl.where(masked | masked_ref, 0.0, z_ref - z)
        if POLICY_BIAS or REFERENCE_BIAS:
            policy_lacks = tl.maximum(policy_lacks, tl.max((masked & (masked_ref == 0)).to(tl.int32)))
            reference_lacks = tl.maximum(reference_lacks, tl.max((masked_ref & (masked == 0)).to(tl.int32)))
        total += sum_p.to(tl.float64)
        total_q += sum_q.to(tl.float64)
        gap_q += tl.sum(q * gap).to(tl.float64)
        if REVERSE:
            gap_p += tl.sum(p * gap).to(tl.float64)
        if ENTROPY:
            excess += tl.sum(tl.where(p > 0.0, p * above_shift(z, shift), 0.0)).to(tl.float64)
    tl.store(sums, shift.to(tl.float64))
    tl.store(sums + 1, total)
    tl.store(sums + 2, shift_q.to(tl.float64))
    tl.store(sums + 3, total_q)
    tl.store(sums + 4, gap_q)
    tl.store(sums + 5, gap_p)
    tl.store(sums + 6, excess)
    tl.store(sums + 9, policy_lacks.to(tl.float64))
    tl.store(sums + 10, reference_lacks.to(tl.float64))

    own = (tl.load(targets_ptr + row) - start).to(tl.int32)
    here = (own >= 0) & (own < columns)
    own_z = logits(policy_row, policy_bias_ptr, own, here, POLICY_BIAS, POLICY_SCALE, POLICY_SOFTCAP)
    own_z_ref = logits(reference_row, reference_bias_ptr, own, here, REFERENCE_BIAS, REFERENCE_SCALE, REFERENCE_SOFTCAP)
    tl.store(sums + 7, own_z.to(tl.float64), mask=here)
    tl.store(sums + 8, own_z_ref.to(tl.float64), mask=here)


@triton.jit
def _normalisers(of_row: tl.tensor) -> Any:
    """A row's scale and the inverse of its sum there, of the policy and of the reference: both tables begin with these.

    A scaled weight times the inverse is a probability.
    """
    shift = tl.load(of_row).to(tl.float32)
    inverse = (1.0 / tl.load(of_row + 1)).to(tl.float32)
    shift_q = tl.load(of_row + 2).to(tl.float32)
    inverse_q = (1.0 / tl.load(of_row + 3)).to(tl.float32)
    return shift, inverse, shift_q, inverse_q


@triton.jit
def add_mixture(
    policy_ptr: tl.tensor,
    policy_bias_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    reference_bias_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    columns: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    POLICY_BIAS: tl.constexpr,
    POLICY_SCALE: tl.constexpr,
    POLICY_SOFTCAP: tl.constexpr,
    REFERENCE_BIAS: tl.constexpr,
    REFERENCE_SCALE: tl.constexpr,
    REFERENCE_SOFTCAP: tl.constexpr,
    MIXTURE: tl.constexpr,
) -> None:
    """Add one tile of both models' products `[N, columns]` to each row's divergence of weight MIXTURE, and to KL(p‖m).

    `add_tile` has gone over all tiles, and log Z − log Z_ref stands in the table.
    """
    row = tl.program_id(0).to(tl.int64)
    policy_row = policy_ptr + row * columns
    reference_row = reference_ptr + row * columns
    sums = sums_ptr + row * SUMS
    shift, inverse, shift_q, inverse_q = _normalisers(sums)
    apart = tl.load(sums + 11).to(tl.float32)
    divergence = tl.load(sums + 12)
    policy_to_mixture = tl.load(sums + 13)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        z = logits(policy_row, policy_bias_ptr, column, inside, POLICY_BIAS, POLICY_SCALE, POLICY_SOFTCAP)
        z_ref = logits(
            reference_row, reference_bias_ptr, column, inside, REFERENCE_BIAS, REFERENCE_SCALE, REFERENCE_SOFTCAP
        )
        mantissa, power = split(z)
        mantissa_q, power_q = split(z_ref)
        p = scaled(mantissa, power, shift) * inverse
        q = scaled(mantissa_q, power_q, shift_q) * inverse_q
        gap = log_gap(z, z_ref, apart)
        below_p, of_larger = below_mixture(gap, MIXTURE)
        divergence += tl.sum(tl.where(gap > 0.0, q, p) * of_larger).to(tl.float64)
        policy_to_mixture += tl.sum(tl.where(p > 0.0, p * below_p, 0.0)).to(tl.float64)
    tl.store(sums + 12, divergence)
    tl.store(sums + 13, policy_to_mixture)


@triton.jit
def write_tile_gradient(
    policy_ptr: tl.tensor,
    policy_bias_ptr: tl.tensor,
    reference_ptr: tl.tensor,
    reference_bias_ptr: tl.tensor,
    targets_ptr: tl.tensor,
    coefficients_ptr: tl.tensor,
    out_ptr: tl.tensor,
    columns: tl.tensor,
    start: tl.tensor,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    POLICY_BIAS: tl.constexpr,
    POLICY_SCALE: tl.constexpr,
    POLICY_SOFTCAP: tl.constexpr,
    REFERENCE_BIAS: tl.constexpr,
    REFERENCE_SCALE: tl.constexpr,
    REFERENCE_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    ENTROPY: tl.constexpr,
    MIXTURE: tl.constexpr,
) -> None:
    """d loss / d(h·weightᵀ + bias) of one tile `[N, columns]`, rounded to the dtype of `out`.

    Only some rows have products of the reference: their places among these are in the table, −1 for the others, whose
    KLs have no gradient. MIXTURE is the weight of the Jensen–Shannon divergence, or None.
    """
    row = tl.program_id(0).to(tl.int64)
    policy_row = policy_ptr + row * columns
    out_row = out_ptr + row * columns
    of_row = coefficients_ptr + row * COEFFICIENTS
    shift, inverse, shift_q, inverse_q = _normalisers(of_row)
    d_logp = tl.load(of_row + 4).to(tl.float32)
    d_forward = tl.load(of_row + 5).to(tl.float32)
    own = (tl.load(targets_ptr + row) - start).to(tl.int32)
    d_reverse = tl.load(of_row + 6).to(tl.float32)
    place = tl.load(of_row + 10).to(tl.int64)
    d_mixture = tl.load(of_row + 11).to(tl.float32)
    reference_row = reference_ptr + tl.maximum(place, 0) * columns
    # Masks of blocks are made of columns: the interpreter cannot combine one with a scalar condition.
    needs_reference = (place >= 0) & (tl.abs(d_forward) + tl.abs(d_reverse) + tl.abs(d_mixture) != 0.0)
    reference_columns = tl.where(needs_reference, columns, 0)
    for block in range(BLOCKS):
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        z = logits(policy_row, policy_bias_ptr, column, inside, POLICY_BIAS, POLICY_SCALE, POLICY_SOFTCAP)
        mantissa, power = split(z)
        p = scaled(mantissa, power, shift) * inverse
        gradient = (d_forward - d_logp) * p
        z_ref = logits(
            reference_row, reference_bias_ptr, column, column < reference_columns,
            REFERENCE_BIAS, REFERENCE_SCALE, REFERENCE_SOFTCAP,
        )  # fmt: skip
        mantissa_q, power_q = split(z_ref)
        gradient -= d_forward * scaled(mantissa_q, power_q, shift_q) * inverse_q
        if REVERSE:
            constant = tl.load(of_row + 7).to(tl.float32)  # log Z_ref − log Z − KL(p‖q)
            slope = tl.where(p > 0.0, p * (d_reverse * ((z - z_ref) + constant)), 0.0)
            gradient += tl.where(d_reverse != 0.0, slope, 0.0)
        if ENTROPY:
            d_entropy = tl.load(of_row + 8).to(tl.float32)
            constant = tl.load(of_row + 9).to(tl.float32)  # H(p) − log Z
            gradient -= tl.where(p > 0.0, p * (d_entropy * (z + constant)), 0.0)
        if MIXTURE is not None:
            apart = tl.load(of_row + 12).to(tl.float32)
            policy_to_mixture = tl.load(of_row + 13).to(tl.float32)
            below_p, _ = below_mixture(log_gap(z, z_ref, apart), MIXTURE)
            slope = d_mixture * (1.0 - MIXTURE) * (below_p - policy_to_mixture)
            gradient += tl.where(p > 0.0, p * slope, 0.0)
        gradient += tl.where(column == own, d_logp, 0.0)
        if POLICY_SOFTCAP is not None:
            capped = z / POLICY_SOFTCAP
            gradient *= 1.0 - capped * capped
        if POLICY_SCALE != 1.0:
            gradient *= POLICY_SCALE
        tl.store(out_row + column, rounded(gradient, out_row), mask=inside)
