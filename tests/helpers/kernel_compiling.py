"""Compiles every kernel of the head for a GPU, which takes no GPU; run as a module, in a process without interpreter.

Arguments are compute capabilities (80 90 100). Prints a JSON object: capability, kernel and variant → the PTX
instructions that the kernels promise not to contain. `fma.rn.ftz.f32` is none of them: the library's logarithm
has it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdpo.token_statistics.cuda import frozen_passes, products, row_passes, tiled_passes

# Types of arguments by name; what is not here is float32.
POINTERS = {
    "targets_ptr": "*i64", "entries_ptr": "*i32", "likeliest_ptr": "*i32", "total_ptr": "*fp64", "excess_ptr": "*fp64",
    "sums_ptr": "*fp64", "coefficients_ptr": "*fp64",
}  # fmt: skip
HALF = {"hidden_ptr", "weight_ptr", "weights_ptr", "b_ptr"}
BLOCKS = {"BLOCKS": 4, "BLOCK": products.BLOCK}
PAIR_BLOCKS = {"BLOCKS": 8, "BLOCK": products.PAIR_BLOCK}
SIZES = {"SIZE_BLOCKS": 8, "SIZE_BLOCK": products.SIZE_BLOCK}
PLAIN: dict[str, Any] = {"HAS_BIAS": False, "SCALE": 1.0, "UNIT": 1.0}
FULL: dict[str, Any] = {"HAS_BIAS": True, "SCALE": 0.5, "UNIT": 64.0}


def models(full: bool, **more: Any) -> dict[str, Any]:
    one = {"BIAS": full, "SCALE": 0.5 if full else 1.0, "SOFTCAP": 30.0 if full else None}
    both = {f"{model}_{name}": value for model in ("POLICY", "REFERENCE") for name, value in one.items()}
    return {**both, **more, **PAIR_BLOCKS}


def extras(asked_for: bool) -> dict[str, Any]:
    return {"REVERSE": asked_for, "ENTROPY": asked_for}


WEIGH = {**BLOCKS, "SIZE_BLOCKS": 1, "LIKELIEST": 16, "LIKELIEST_SLOTS": 16, "LIMIT": 2.0**64}
CORRECT = {**SIZES, "LIKELIEST": 16, "SLOTS": 16}
# (kernel, dtype of what it writes, constants, warps)
VARIANTS: list[tuple[Any, str, dict[str, Any], int]] = [
    (frozen_passes.weigh_tile, "bf16", {**WEIGH, **PLAIN}, products.WARPS),
    (frozen_passes.weigh_tile, "fp16", {**WEIGH, **FULL, "LIKELIEST": 0, "LIKELIEST_SLOTS": 1}, products.WARPS),
    (frozen_passes.write_remainders, "bf16", {**BLOCKS, **FULL}, products.WARPS),
    (
        frozen_passes.write_group_maxima,
        "fp32",
        {"BLOCKS": 4, "GROUPS": 64, "GROUP": 64, "HAS_BIAS": True, "SCALE": 0.5},
        products.WARPS,
    ),
    (
        row_passes.write_exact_logits,
        "fp64",
        {**SIZES, "ENTRIES": 2, "SLOTS": 2, "HAS_BIAS": True, "SCALE": 0.5},
        products.ROW_WARPS,
    ),
    (row_passes.correct_and_normalise, "fp32", {**CORRECT, **PLAIN, "PAIR": False}, products.ROW_WARPS),
    (row_passes.correct_and_normalise, "fp32", {**CORRECT, **FULL, "PAIR": True}, products.ROW_WARPS),
    (row_passes.write_row_dots, "fp64", SIZES, products.ROW_WARPS),
    *((tiled_passes.add_tile, "fp32", models(full, **extras(full)), products.WARPS) for full in (False, True)),
    *((tiled_passes.add_mixture, "fp32", models(full, MIXTURE=0.3), products.WARPS) for full in (False, True)),
    (tiled_passes.write_tile_gradient, "bf16", models(False, **extras(False), MIXTURE=None), products.WARPS),
    (tiled_passes.write_tile_gradient, "bf16", models(False, **extras(False), MIXTURE=0.3), products.WARPS),
    (tiled_passes.write_tile_gradient, "fp32", models(True, **extras(True), MIXTURE=0.3), products.WARPS),
]


def type_of(name: str, written: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name == "out_ptr":
        return f"*{written}"
    if name in HALF:
        return "*bf16"
    return POINTERS.get(name, "*fp32") if name.endswith("_ptr") else "i32"


def compiled(kernel: Any, written: str, constants: dict[str, Any], warps: int, capability: int) -> str:
    """The kernel's PTX, assembled too; for pointers and sizes that 16 divides, as a model's are."""
    signature = {name: type_of(name, written, constants) for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind != "constexpr"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert result.asm["cubin"]
    ptx: str = result.asm["ptx"]
    return ptx


def main() -> None:
    found = {}
    for capability in map(int, sys.argv[1:]):
        for kernel, written, constants, warps in VARIANTS:
            ptx = compiled(kernel, written, constants, warps, capability)
            forbidden = [line.split()[0] for line in ptx.splitlines() if "atom." in line or "fma.rn.f32" in line]
            found[f"{capability}, {kernel.__name__}, {written}, {len(found)}"] = forbidden
    print(json.dumps(found))


if __name__ == "__main__":
    main()
