"""The benchmarks run, write whole results, and their contestants compute the same thing."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.warm_processes import WarmProcess, warm_python
from tdpo.sampling import compiled_steps, recorded_steps

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent / "src"), os.environ.get("PYTHONPATH", "")]),
}


def arguments(output: Path, *options: str) -> list[str]:
    return ["--quick", "--output", str(output), *options]


def run(name: str, tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The result file and what was printed; the contestants' processes are warm too."""
    output = tmp_path / "result.json"
    started = WarmProcess(
        BENCHMARKS / f"{name}.py", *arguments(output, *options),
        environment=ENVIRONMENT, folder=tmp_path, interpreter=warm_python(tmp_path / "python"),
    )  # fmt: skip
    printed, said = started.communicate(timeout=120)
    assert started.returncode == 0, printed + said
    assert "round 1 of 1, about" in said
    return json.loads(output.read_text()), printed


def check_result(result: dict[str, Any], name: str, *contestants: str) -> None:
    """What every result file must hold, whatever was measured."""
    assert result["command"].startswith(f"python benchmarks/{name}.py --quick")
    assert result["complete"] is True
    assert set(result["versions"]) >= {"python", "tdpo", "torch", "transformers", "trl", "peft", "commit"}
    hardware = result["hardware"]
    assert hardware["cpu"] and hardware["memory MiB"] > 0 and hardware["torch threads"] >= 1
    assert set(hardware["flags"]) >= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    assert result["date"].startswith("20")
    assert {entry["contestant"] for entry in result["entries"]} == set(contestants)
    for entry in result["entries"]:
        assert entry["runs"] and "failed" not in entry, entry
        for spread in entry["summary"].values():
            assert spread["min"] <= spread["quartile_1"] <= spread["median"] <= spread["quartile_3"] <= spread["max"], (
                spread
            )


@pytest.mark.slow
def test_head(tmp_path: Path) -> None:
    contestants = ("naive TDPO", "frozen head with summary")
    options = ("--heads", "frozen", "--contestants", *contestants)
    result, printed = run("head", tmp_path, *options)
    check_result(result, "head", *contestants)
    assert "N = 64, V = 2000, D = 576, float32, head frozen" in printed
    for entry in result["entries"]:
        assert entry["summary"]["milliseconds"]["median"] > 0
        assert entry["summary"]["mebibytes"]["median"] > 0
        assert entry["runs"][0]["loss"] == pytest.approx(result["entries"][0]["runs"][0]["loss"], rel=1e-5)


LOG_2 = 0.693147


@pytest.mark.slow
def test_step(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    contestants = ("tdpo TDPO2, LoRA", "naive TDPO2, LoRA")
    options = ("--model", str(tiny_folder("llama")), "--contestants", *contestants)
    result, printed = run("step", tmp_path, *options)
    check_result(result, "step", *contestants)
    assert result["derived"]["problems"] == []
    assert "second loss of tdpo TDPO2, LoRA" in printed and "tokens/s" in printed
    ours, naive = (entry["runs"][0]["losses"] for entry in result["entries"])
    assert ours[1] == pytest.approx(naive[1], abs=1e-4)
    assert ours[1] != pytest.approx(LOG_2, abs=1e-5), "an update that changes nothing compares nothing"


@pytest.mark.slow
def test_precision(tmp_path: Path) -> None:
    result, printed = run("precision", tmp_path, "--vocabulary", "1000")
    check_result(result, "precision", "naive", "dense", "tiled", "frozen head with summary")
    lines = result["derived"]["decades"]
    assert {line["decade"] for line in lines} >= set(range(-4, 1))
    for line in lines:
        if line["path"] != "naive":
            # A KL that is right to three digits where it counts, and always to the size that it has.
            assert line["kl_error"]["median"] < (1e-3 if line["decade"] >= -2 else 0.5), line
    assert "KL in nats, path" in printed


def test_errors_beside_the_published_lines_are_those_of_bfloat16_from_a_thousandth_to_one_nat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    precision = importlib.import_module("precision")

    def line(path: str, decade: int, ratio: float | None, dtype: str = "bfloat16") -> dict[str, Any]:
        error = {} if ratio is None else {"ratio to naive": ratio}
        return {"path": path, "decade": decade, "case": {"dtype": dtype}, "kl_error": error}

    beyond = [line("tiled", -4, 0.9), line("tiled", 0, 0.8), line("tiled", -3, 0.7, "float32"), line("naive", -2, 1.0)]
    within = [line("tiled", -3, 0.01), line("tiled", -1, 0.03), line("tiled", -2, None), line("dense", -2, 0.0)]
    assert precision.largest_ratios([*beyond, *within]) == {"tiled": 0.03, "dense": 0.0}


@pytest.mark.slow
def test_rollouts(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    contestants = ("generate, base model", "tdpo, adapter merged")
    options = ("--model", str(tiny_folder("llama")), "--contestants", *contestants)
    result, printed = run("rollouts", tmp_path, *options)
    check_result(result, "rollouts", *contestants)
    assert result["derived"]["problems"] == []
    assert "prompts 3, samples 2, new tokens 4, dtype float32" in printed and "/ generate" in printed
    for entry in result["entries"]:
        [measured] = entry["runs"]
        [lengths], [tokens], [seconds] = (measured[key] for key in ("lengths", "tokens", "seconds"))
        assert len(lengths) == 6 and tokens == sum(lengths)
        assert measured["tokens_per_second"] == [pytest.approx(tokens / seconds)]


@pytest.mark.slow
def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ("--heads", "frozen", "--contestants", "tiled", "--rounds", "50")
    process = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "head.py"), *arguments(output, *options)], env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # Where the tests run in the background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the measuring process hears it too
    printed, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "interrupted" in said and "head frozen" in printed
    result = json.loads(output.read_text())
    assert result["complete"] is False
    assert 1 <= len(result["entries"][0]["runs"]) < 50


@pytest.mark.parametrize("name", ["head", "step", "precision", "rollouts"])
def test_help_teaches(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments(tmp_path / "none.json"), "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    printed, said = capsys.readouterr()
    assert ended.value.code == 0, said
    for part in ("Read the table", f"python benchmarks/{name}.py", "--rounds", "--quick"):
        assert part in printed


# ---- the contestants of step.py train on the same tokens and, where they should, to the same loss ----


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("step")


@pytest.mark.slow
def test_contestants_of_the_step_agree(
    step: ModuleType, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four pairs need no more than the first of the pages, and a product that is timed may be of any size.
    monkeypatch.setenv(importlib.import_module("_text").SNAPSHOT, str(BENCHMARKS.parent / "README.md"))
    monkeypatch.setattr(step, "BareProduct", partial(step.BareProduct, tokens=64, wide=64, narrow=64))
    case = {"pairs": 2, "prompt tokens": 8, "response tokens": 6, "dtype": "float32"}
    arguments = argparse.Namespace(model=str(tiny_folder("llama")), steps=1, device="cpu", shape=None)
    runs = {name: step.measure(name, case, arguments) for name in step.ON_CPU if name != "tdpo TDPO2, LoRA"}
    for name, measured in runs.items():
        assert measured["response_tokens"] == 2 * 2 * 6, name
        assert measured["body_tokens"] == (2 * (8 + 2 * 6) if "tdpo" in name else 2 * 2 * (8 + 6)), name
        assert measured["losses"][0] == pytest.approx(LOG_2, abs=1e-4), name
        assert len(measured["seconds"]) == 1 and measured["mebibytes"] >= measured["step_mebibytes"], name
    second = {name: measured["losses"][1] for name, measured in runs.items()}
    assert second["tdpo TDPO2, full"] == pytest.approx(second["naive TDPO2, full"], abs=1e-5)
    assert second["tdpo DPO, LoRA"] == pytest.approx(second["TRL DPO, LoRA"], abs=1e-4)
    assert second["TRL DPO, full"] == pytest.approx(second["TRL DPO, full, reference model"], abs=1e-5)
    assert second["tdpo DPO, LoRA"] != pytest.approx(second["naive TDPO2, LoRA"], abs=1e-4)
    # By hand: 4 rows of 14 tokens through two layers and the head, forward twice (the reference too) and backward.
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) + 384 * 32
    products = {name: measured["gigaflop"] for name, measured in runs.items()}
    assert products["naive TDPO2, full"] == pytest.approx(1e-9 * 2 * 56 * weights * (2 + 2), rel=0.01)
    # TRL computes the logits of 13 positions a row twice, and keeps none.
    twice = 52 / 56 * 384 * 32
    assert products["TRL DPO, full"] == pytest.approx(1e-9 * 2 * 56 * (3 * (weights - 384 * 32) + 4 * twice), rel=0.01)
    assert products["tdpo TDPO2, full"] < 40 / 56 * products["naive TDPO2, full"], "shared prompts"
    assert all(measured["product_seconds"] > 0 for measured in runs.values())


def test_a_contestant_that_trains_to_another_loss_is_reported(step: ModuleType) -> None:
    case = {"dtype": "float32"}
    names = ("tdpo TDPO2, LoRA", "naive TDPO2, LoRA")
    measured = step.Measurements.__new__(step.Measurements)
    for theirs, problems in ((0.68, 0), (0.60, 1)):
        losses = ([0.69, 0.68], [0.69, theirs])
        measured.entries = [step.Entry(step.Job(n, case), [{"losses": v}]) for n, v in zip(names, losses, strict=True)]
        assert len(step.check_losses(measured, case)) == problems


def test_pages_edited_meanwhile_change_nothing(
    step: ModuleType, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contestants are processes of their own, minutes apart, and must train on the same text."""
    text = importlib.import_module("_text")
    monkeypatch.setattr(text, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("the cat sat on the mat and the dog ran away")
    with text.frozen_pages():
        before = text.token_stream(tokenizer, 5)
        page.write_text("what a wonderful day it was")
        assert text.token_stream(tokenizer, 5) == before
    assert text.token_stream(tokenizer, 5) != before


def test_pairs_have_exact_lengths_and_differ(step: ModuleType, tokenizer: Any) -> None:
    pairs = step.make_pairs(tokenizer, 3000, 8, 6)
    assert {tuple(map(len, pair)) for pair in pairs} == {(8, 6, 6)}
    assert len({tuple(map(tuple, pair)) for pair in pairs[:500]}) > 450


# ---- the contestants of rollouts.py sample whole answers, and count what they sampled ----


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # Contestants set these for their process, which here is that of other tests too.
    monkeypatch.setattr(compiled_steps, "AFTER_STEPS", compiled_steps.AFTER_STEPS)
    monkeypatch.setattr(recorded_steps, "FROM_STEPS", recorded_steps.FROM_STEPS)
    return importlib.import_module("rollouts")


CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "the dog sat on the mat", "a wonderful day")]


@pytest.mark.parametrize("ends", [False, True])
def test_contestants_of_the_rollouts_give_whole_answers(
    rollouts: ModuleType, ends: bool, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    stop = {1, *range(2, 384, 3)} if ends else {1}
    for name, contestant in rollouts.CONTESTANTS.items():
        model = tiny_model("llama")
        model.generation_config.eos_token_id = sorted(stop)
        model = rollouts.with_adapter(model) if contestant.adapter else model
        rows = contestant.run(rollouts.Task(model, tokenizer, CHATS, 8, 12))
        assert len(rows) == 24, name
        for row in rows:
            assert not stop & set(row[:-1]), name
            assert row[-1] in stop or len(row) == 12, name
        assert len({tuple(row) for row in rows}) > 12, name
        assert (len({len(row) for row in rows}) > 4) == ends, name


def test_contestants_of_the_rollouts_sample_one_distribution(
    rollouts: ModuleType, tiny_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Answers are as long on average, which no padding, shift or other temperature leaves as it is."""
    means = {}
    for name, contestant in rollouts.CONTESTANTS.items():
        model = tiny_model("llama")
        model.generation_config.eos_token_id = list(range(1, 384, 5))
        model = rollouts.with_adapter(model) if contestant.adapter else model
        rows = contestant.run(rollouts.Task(model, tokenizer, CHATS, 300, 16))
        means[name] = sum(map(len, rows)) / len(rows)
    # Lengths spread by about 4, so a mean over 900 by 0.14.
    assert max(means.values()) - min(means.values()) < 0.6, means


def test_rows_are_counted_up_to_their_end(rollouts: ModuleType) -> None:
    assert rollouts.up_to_end([5, 6, 1, 0, 0], frozenset([1])) == [5, 6, 1]
    assert rollouts.up_to_end([5, 6, 7], frozenset([1])) == [5, 6, 7]


def test_rollouts_that_lack_rows_or_are_too_long_are_reported(rollouts: ModuleType) -> None:
    case = {"prompts": 2, "samples": 1, "new tokens": 4, "dtype": "float32"}
    for lengths, problems in (([1, 4], 0), ([4], 1), ([0, 4], 1), ([2, 5], 1)):
        entry = rollouts.Entry(rollouts.Job("tdpo", case), [{"lengths": [lengths]}])
        assert len(rollouts.check_lengths(entry)) == problems


# ---- the contestants of head.py compute the same thing ----


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("head")


CASE = {"tokens": 48, "vocabulary": 5000, "width": 32}
PEERS = {
    ("TDPO2", "trained"): ("naive TDPO", "TRL chunked", "tiled"),
    ("TDPO2", "frozen"): ("naive TDPO", "TRL chunked", "tiled", "frozen head with summary"),
    ("DPO", "trained"): ("naive DPO", "tiled DPO"),
    ("DPO", "frozen"): ("naive DPO", "tiled DPO"),
    ("JS", "trained"): ("naive JS", "TRL chunked JS", "tiled JS"),
    ("JS", "frozen"): ("naive JS", "TRL chunked JS", "tiled JS"),
}
UNCOMPARED = {"bare matrix products", "torch.compile naive TDPO"}  # no loss; the naive code itself, compiled
ON_A_GPU = {"two bare products", "frozen DPO, same kernels", "Liger fused linear DPO", "cut-cross-entropy DPO"}


def one_step(head: ModuleType, name: str, which: str, dtype: str) -> tuple[float, torch.Tensor, torch.Tensor | None]:
    contestant = head.CONTESTANTS[name]
    inputs = head.make_inputs({**CASE, "dtype": dtype, "head": which})
    try:
        loss = contestant.step(inputs, contestant.prepare(inputs))
    except head.Unavailable as reason:
        pytest.skip(str(reason))
    return loss, inputs.hidden.grad, inputs.weight.grad


def test_every_contestant_of_the_head_is_compared(head: ModuleType) -> None:
    compared = {name for names in PEERS.values() for name in names}
    assert compared | UNCOMPARED | ON_A_GPU == set(head.CONTESTANTS)
    measured_on_a_gpu = ON_A_GPU | set(PEERS["JS", "trained"])
    assert {n for n, c in head.CONTESTANTS.items() if c.devices == ("cuda",)} == measured_on_a_gpu
    for (loss, which), names in PEERS.items():
        here = {n for n, c in head.CONTESTANTS.items() if c.loss == loss and which in c.heads}
        assert here - UNCOMPARED - ON_A_GPU == set(names)


@pytest.mark.parametrize(
    ("loss", "which", "name"), [(*key, name) for key, names in PEERS.items() for name in names[1:]]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_contestants_of_the_head_agree(head: ModuleType, loss: str, which: str, name: str, dtype: str) -> None:
    # TRL's functions accumulate in float32 whatever they are given.
    tolerance = 1e-10 if dtype == "float64" and not name.startswith("TRL") else 1e-5
    expected_loss, expected_hidden, expected_weight = one_step(head, PEERS[loss, which][0], which, dtype)
    value, hidden, weight = one_step(head, name, which, dtype)
    assert expected_loss != pytest.approx(0.693147, abs=1e-3), "policy and reference must differ"
    assert value == pytest.approx(expected_loss, rel=tolerance)
    assert (hidden - expected_hidden).norm() <= tolerance * expected_hidden.norm()
    assert (weight is None) == (expected_weight is None) == (which == "frozen")
    if weight is not None and expected_weight is not None:
        assert (weight - expected_weight).norm() <= tolerance * expected_weight.norm()


def test_the_two_losses_of_the_head_are_two(head: ModuleType) -> None:
    tdpo, dpo = (one_step(head, name, "trained", "float64")[0] for name in ("naive TDPO", "naive DPO"))
    assert abs(tdpo - dpo) > 1e-4


def test_a_contestant_that_needs_too_much_memory_is_left_out_with_the_reason(
    head: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"tokens": 8192, "vocabulary": 262144, "width": 576, "dtype": "float32", "head": "trained"}
    monkeypatch.setattr(head, "total_memory", lambda: 24 << 30)
    assert "more than 60% of this machine's memory" in head.job("naive TDPO", case, 1).skipped
    assert head.job("tiled", case, 1).skipped is None
    small = {**case, "tokens": 1024, "vocabulary": 49152}
    assert head.job("naive TDPO", small, 1).skipped is None


def test_the_gradient_of_the_head_is_not_counted_as_growth_of_memory(head: ModuleType) -> None:
    def entry(vocabulary: int, which: str, mebibytes: float) -> Any:
        case = {"tokens": 1024, "vocabulary": vocabulary, "width": 1024, "dtype": "float32", "head": which}
        return head.Entry(head.Job("tiled", case), [{"mebibytes": mebibytes}])

    measured = head.Measurements.__new__(head.Measurements)
    measured.entries = [
        entry(1 << 15, "trained", 128 + 40.0), entry(1 << 18, "trained", 1024 + 50.0),
        entry(1 << 15, "frozen", 40.0), entry(1 << 18, "frozen", 60.0),
    ]  # fmt: skip
    assert [growth["value"] for growth in head.memory_growth(measured)] == [1.25, 1.5]


def test_the_peak_of_memory_is_of_the_stretch_since_the_reset(head: ModuleType) -> None:
    memory = head.PeakMemory()
    if not memory.resettable:
        pytest.skip("this system does not reset a process's peak")
    block = torch.ones(16 * 2**20)  # 64 MiB
    del block
    assert 60 < memory.read() < 80
    memory.reset()
    assert memory.read() < 10
