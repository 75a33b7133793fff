"""Where the head's kernels run, how wide their tiles are, what they hold, and that a GPU's compiler takes them."""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.head_cases import EXTRAS, LargestTensor, LivePeak, weighted_sum
from helpers.kernel_cases import (
    DEVICE,
    any_case,
    frozen_case,
    kernels,  # noqa: F401 - a fixture
    needs_triton,
    quiet,
    use_tiles_of,
)
from tdpo import frozen_head_token_stats, linear_token_stats, summarize_reference
from tdpo.token_statistics import JensenShannon, cuda, implementations
from tdpo.token_statistics import products as plain_products
from tdpo.token_statistics.cuda import choice, products
from tdpo.token_statistics.cuda.self_check import kernels_agree
from tdpo.token_statistics.implementations import KERNELS, TILED, implementation_for

GIB = 1 << 30


@needs_triton
@quiet
def test_the_kernels_run_where_they_apply(kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    from tdpo.token_statistics.cuda import frozen as cuda_frozen
    from tdpo.token_statistics.cuda import tiled as cuda_tiled

    half, wide = frozen_case(torch.bfloat16, tokens=1), frozen_case(torch.bfloat16, tokens=1).wide()
    calls: list[str] = []

    def record(module: Any, name: str) -> None:
        plain = getattr(module, name)
        kernels.setattr(module, name, lambda *arguments: (calls.append(name), plain(*arguments))[1])

    kernels_agree(half.hidden.device, torch.bfloat16)  # asked once, before calls are counted
    record(cuda_frozen, "summarize")
    record(cuda_frozen, "statistics")
    record(cuda_tiled, "linear_statistics")

    def run(case: Any) -> None:
        summary = summarize_reference(case.reference, case.head, case.targets)
        frozen_head_token_stats(case.hidden, case.head, summary, case.targets)
        linear_token_stats(*case.arguments())

    run(half)
    assert calls == ["summarize", "statistics", "linear_statistics"]
    run(wide)
    if DEVICE == "cpu":
        kernels.setattr(choice, "in_interpreter", False)
        run(half)
    assert len(calls) == 3, "neither float64 nor a CPU's tensors"


def ask_anew(patch: pytest.MonkeyPatch) -> None:
    """Forget whether the kernels agree. One tile is all that the interpreter then computes."""
    use_tiles_of(128, 128, patch)
    patch.setattr(products, "SIZE_BLOCK", 256)
    patch.setattr(implementations, "kernels_agree", functools.cache(kernels_agree.__wrapped__))


@needs_triton
@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_device_on_which_the_kernels_agree_uses_them(dtype: torch.dtype, kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    ask_anew(kernels)
    case = frozen_case(dtype, tokens=1)
    before = torch.random.get_rng_state()
    assert implementation_for("auto", case.hidden, case.head.weight) is KERNELS
    assert torch.equal(before, torch.random.get_rng_state())


@needs_triton
@quiet
@pytest.mark.parametrize(
    "fault", ["a KL off by a hundredth", "a mixture off by a hundredth", "an error of the compiler"]
)
def test_a_device_on_which_they_do_not_agree_takes_the_plain_walk_and_says_so_once(
    fault: str,
    kernels: pytest.MonkeyPatch,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    operation, name = ("linear_statistics", "jensen_shannon") if "mixture" in fault else ("statistics", "forward_kl")
    statistics = getattr(cuda, operation)

    def broken(*arguments: Any) -> Any:
        if fault == "an error of the compiler":
            raise RuntimeError("PTX assembly aborted due to errors\nand more")
        stats = statistics(*arguments)
        return replace(stats, **{name: 1.01 * getattr(stats, name)}) if hasattr(stats, name) else stats

    kernels.setattr(cuda, operation, broken)
    ask_anew(kernels)
    case = frozen_case(torch.float32, tokens=1)
    for _ in range(2):
        assert implementation_for("auto", case.hidden, case.head.weight) is TILED
    [message] = [record.getMessage() for record in caplog.records]
    assert "not used on" in message and "in float32" in message
    assert ("RuntimeError: PTX assembly aborted due to errors." if "error of" in fault else "off by 0.01") in message


def gpu_tensor(dtype: torch.dtype) -> Any:
    return SimpleNamespace(is_cuda=True, dtype=dtype)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "Triton is not installed, {so} Remedy: pip install triton."),
        ("there", "Triton finds no C compiler, {so} Remedy: install gcc, or name a compiler in CC."),
    ],
)
def test_without_triton_the_plain_walk_runs_and_says_so_once(
    spec: Any, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choice._triton_works.cache_clear()
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not choice.kernels_apply(gpu_tensor(torch.bfloat16), None)
    so = "so the head runs on the GPU without its kernels, several times slower."
    assert [r.message for r in caplog.records] == [said.format(so=so)]
    monkeypatch.undo()
    choice._triton_works.cache_clear()


def test_tensors_that_the_kernels_do_not_take(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A float64 anywhere, or a tensor that is not on the GPU; nobody is told to install anything then."""
    monkeypatch.setattr(choice, "_triton_works", lambda: pytest.fail("Triton was looked for"))
    on_cpu = SimpleNamespace(is_cuda=False, dtype=torch.float32)
    assert not choice.kernels_apply(gpu_tensor(torch.float32), gpu_tensor(torch.float64))
    assert not choice.kernels_apply(gpu_tensor(torch.float32), on_cpu)
    monkeypatch.setattr(choice, "_triton_works", lambda: True)
    assert choice.kernels_apply(gpu_tensor(torch.float32), None, gpu_tensor(torch.float16))


def test_tiles_follow_the_batch_and_the_free_memory() -> None:
    widths = {
        n: products.tile_width(n, 151_936, 2048, entry_bytes=6, free_bytes=100 * GIB)
        for n in (0, 1, 4096, 8192, 16_384, 10**6)
    }
    assert widths == {0: 16_384, 1: 16_384, 4096: 16_384, 8192: 16_384, 16_384: 8192, 10**6: 4096}
    by_memory = {
        free: products.tile_width(4096, 151_936, 2048, entry_bytes=6, free_bytes=free)
        for free in (0, GIB // 2, GIB, 2 * GIB)
    }
    assert by_memory == {0: 4096, GIB // 2: 4096, GIB: 8192, 2 * GIB: 16_384}
    assert products.tile_width(4096, 3000, 64, 6, GIB) == 4096, "no wider than a small vocabulary, but a whole block"
    assert products.tile_width(4096, 9000, 64, 6, 100 * GIB) == 16_384
    assert products.tile_width(4096, 8000, 64, 6, 100 * GIB) == 8192


@given(
    st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 16_384), st.integers(6, 12), st.integers(0, 1 << 38)
)
def test_tiles_are_whole_blocks_within_bounds(
    tokens: int, vocabulary: int, size: int, entry_bytes: int, free: int
) -> None:
    width = products.tile_width(tokens, vocabulary, size, entry_bytes, free)
    assert width % products.BLOCK == width % products.PAIR_BLOCK == 0
    assert products.NARROWEST <= width <= products.WIDEST
    assert width < 2 * max(vocabulary, products.BLOCK)
    assert width == products.NARROWEST or tokens * width * entry_bytes <= free / 4
    assert products.tile_width(tokens, vocabulary, size, entry_bytes, 2 * free) >= width


@needs_triton
@quiet
@pytest.mark.usefixtures("kernels")
def test_nothing_of_the_size_of_the_logits_is_ever_held() -> None:
    """N = 4, V = 192, D = 1, tiles of 32: [N, V] is 768, the head 192, a tile 128 entries (512 bytes)."""
    case = any_case(torch.bfloat16, tokens=4, vocabulary=192, size=1, reference_size=1)
    case.leaves()
    with LargestTensor() as watch:
        weighted_sum(linear_token_stats(*case.arguments(), extras=[*EXTRAS, JensenShannon()])).backward()
    assert watch.entries <= 512
    shared = frozen_case(torch.bfloat16, tokens=4, vocabulary=192, size=1)
    with LargestTensor() as watch:
        summary = summarize_reference(shared.reference, shared.head, shared.targets)
        shared.hidden.requires_grad_()
        stats = frozen_head_token_stats(shared.hidden, shared.head, summary, shared.targets, extras=EXTRAS)
    with LargestTensor() as backward:
        (stats.policy_logp + stats.forward_kl).sum().backward(retain_graph=True)
    with LargestTensor() as walk:
        stats.reverse_kl.sum().backward()  # type: ignore[union-attr]
    assert watch.entries <= 512 and backward.entries == 4 and walk.entries <= 512


@needs_triton
@quiet
def test_a_step_of_a_frozen_head_holds_two_tiles_and_an_expectation(kernels: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Of one token 6 bytes a column of a tile, 4 a number of its expectation, and some hundred.

    In tiles of 16384 that is 418 MiB for N = 4096 and D = 2048, and 899 MiB for N = 8192 and D = 4096, as the limits of
    the GPU's table are 450 and 900. A tile is four times as wide as a hidden state there, and so here.
    """
    tokens, width, size = 2, 256, 64
    use_tiles_of(width, width, kernels)
    case = frozen_case(torch.bfloat16, tokens=tokens, vocabulary=2 * width, size=size)
    summary = summarize_reference(case.reference, case.head, case.targets)
    case.hidden.requires_grad_()
    watch = LivePeak([case.hidden, case.head.weight, case.targets, *(v for v in vars(summary).values())])
    for name in ("multiply", "add_product", "launch"):  # these widen operands on a CPU
        kernels.setattr(products, name, watch.leaving_out(getattr(products, name)))
    with watch:
        stats = frozen_head_token_stats(case.hidden, case.head, summary, case.targets)
        (stats.policy_logp.sum() + stats.forward_kl.sum()).backward()
    tile = tokens * (6 * width + 4 * size)
    assert tile <= watch.peak <= tile + 400 * tokens


@needs_triton
@quiet
@pytest.mark.usefixtures("kernels")
def test_a_float32_head_under_autocast_is_converted_tile_by_tile() -> None:
    """N = 2, V = 192, D = 8, tiles of 32: the head has 1536 entries, and 256 of them at a time are in bfloat16."""
    case, shared = (make(torch.float32, tokens=2, vocabulary=192, size=8) for make in (any_case, frozen_case))
    case.hidden.requires_grad_(), shared.hidden.requires_grad_()
    with LargestTensor(torch.bfloat16) as watch, torch.autocast(DEVICE, torch.bfloat16):
        stats = linear_token_stats(*case.arguments(), extras=EXTRAS)
        summary = summarize_reference(shared.reference, shared.head, shared.targets)
        of_shared = frozen_head_token_stats(shared.hidden, shared.head, summary, shared.targets, extras=EXTRAS)
        (weighted_sum(stats) + of_shared.forward_kl.sum() + of_shared.reverse_kl.sum()).backward()  # type: ignore[union-attr]
    assert case.hidden.grad is not None and shared.hidden.grad is not None
    assert watch.entries == 32 * 8


@needs_triton
@pytest.mark.skipif(DEVICE == "cpu", reason="the peak is that of a GPU's allocator")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["frozen", "any head"])
def test_a_cards_peak_is_flat_in_the_vocabulary(path: str, dtype: torch.dtype) -> None:
    """N = 512, D = 64, V = 32768 and eight times that: as wide tiles, so the peak may grow by a tenth.

    Of a float32 head under autocast too.
    """

    def peak(vocabulary: int, autocast: bool) -> int:
        case = frozen_case(dtype, tokens=512, vocabulary=vocabulary, size=64)
        case.hidden.requires_grad_()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            if path == "frozen":
                summary = summarize_reference(case.reference, case.head, case.targets)
                stats = frozen_head_token_stats(case.hidden, case.head, summary, case.targets, extras=EXTRAS)
            else:
                stats = linear_token_stats(*case.arguments(), extras=[*EXTRAS, JensenShannon()])
            (stats.policy_logp + stats.forward_kl + stats.reverse_kl).sum().backward()  # type: ignore[operator]
        return torch.cuda.max_memory_allocated() - before

    for autocast in {False, dtype == torch.float32}:
        peak(32_768, autocast)  # libraries take their own room at first
        small, large = peak(32_768, autocast), peak(8 * 32_768, autocast)
        assert large <= 1.1 * small and large < 512 * 8 * 32_768 * 4 / 3, "a third of float32 logits"


def test_float32_products_stay_float32_where_tf32_is_allowed() -> None:
    setting: Any = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "tf32"
        with products.full_float32(False):
            assert setting.fp32_precision == "tf32"
        with pytest.raises(RuntimeError, match="in between"), products.full_float32(True):
            assert setting.fp32_precision == "ieee"
            raise RuntimeError("in between")
        assert setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_plain_walks_products_do_too(
    dtypes: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a GPU without kernels would give KLs of ten bits, and kernels that are right would not agree with it."""
    setting: Any = torch.backends.cuda.matmul
    before, seen = setting.fp32_precision, []
    for name in ("mm", "addmm"):
        plain = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, plain=plain, **k: (seen.append(setting.fp32_precision), plain(*a, **k))[1]
        )
    a, b = (torch.empty(4, 4, dtype=dtype, device="meta") for dtype in dtypes)
    try:
        setting.fp32_precision = "tf32"
        plain_products.wide_product(a, b)
        plain_products.add_wide_product(torch.empty(4, 4, device="meta"), a, b, plain_products.Workspace())
        assert len(seen) >= 2 and set(seen) == {"ieee"} and setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = before


@needs_triton
@quiet
def test_what_a_caller_has_switched_off_does_not_decide_about_the_kernels(
    kernels: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """The answer is kept for the whole process."""
    ask_anew(kernels)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
        assert kernels_agree.__wrapped__(torch.device(DEVICE), torch.float32)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("the card is full just now")

    kernels.setattr(cuda, "statistics", full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels_agree.__wrapped__(torch.device(DEVICE), torch.float32)


def test_the_kernels_are_asked_in_the_dtypes_of_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias is no operand, and two models may have two dtypes."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(cuda, "kernels_apply", lambda *_: True)
    monkeypatch.setattr(implementations, "kernels_agree", lambda _, dtype: asked.append(dtype) or True)
    half, wide = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3)
    bias = torch.zeros(2)
    implementation_for("auto", half, half, bias)
    assert asked == [torch.bfloat16]
    implementation_for("auto", half, wide, half, bias, wide, None)
    assert set(asked[1:]) == {torch.bfloat16, torch.float32}


@needs_triton
@pytest.mark.slow
def test_a_gpus_compiler_takes_every_kernel(tmp_path: Path) -> None:
    """Compiled and assembled without a GPU, for Ampere, Hopper and Blackwell: no atomics, whose order would differ, and
    no contraction.
    """
    capabilities = ["80", "90", "100"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tests = str(Path(__file__).parents[1])
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    command = [sys.executable, "-m", "helpers.kernel_compiling", *capabilities]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {tuple(name.split(", ")[:2]) for name in found} == set(product(capabilities, kernels_of_the_package()))
    assert all(forbidden == [] for forbidden in found.values()), found


def kernels_of_the_package() -> set[str]:
    """Functions that are launched: those with a program a row."""
    folder = Path(products.__file__).parent
    names = set()
    for path in folder.glob("*_passes.py"):
        for part in path.read_text("utf-8").split("@triton.jit\ndef ")[1:]:
            if "tl.program_id" in part:
                names.add(part.split("(")[0])
    assert len(names) >= 8
    return names
