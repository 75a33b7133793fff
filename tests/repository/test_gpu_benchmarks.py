"""The benchmarks of a GPU: what measures there runs here beside a stand-in of the card, and the session judges rightly.

The stand-in has a clock and a memory, which a step moves as it is told; nothing is computed on it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.kernel_cases import DEVICE, kernels, needs_triton, quiet  # noqa: F401

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MIB = 2**20


def loaded(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def _from_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Card:
    """In place of torch.cuda: bytes that are held and their peak, and a clock that the host reads after a wait only."""

    def __init__(self) -> None:
        self.held = self.peak = 100 * MIB
        self.now, self.waits = 0.0, 0

    def work(self, milliseconds: float, needs: float, keeps: float = 0.0) -> None:
        """Take so long, with so many MiB more at the peak and after it."""
        self.peak = max(self.peak, self.held + int(needs * MIB))
        self.held += int(keeps * MIB)
        self.now += milliseconds

    def synchronize(self) -> None:
        self.waits += 1

    def memory_allocated(self) -> int:
        return self.held

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.held


class Event:
    def __init__(self, card: Card) -> None:
        self.card, self.is_over = card, False

    def record(self) -> None:
        self.at = self.card.now

    def synchronize(self) -> None:
        self.is_over = True

    def elapsed_time(self, end: Event) -> float:
        assert end.is_over, "an event that nobody waited for has no time"
        return end.at - self.at


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    for name in ("synchronize", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(made) if enable_timing else None)
    return made


def test_a_step_is_timed_by_events_and_its_memory_is_over_the_state_before(card: Card) -> None:
    def step() -> str:
        card.work(12.5, needs=30, keeps=10)
        return "loss"

    timed = loaded("_card").timed
    card.work(1, needs=500)  # what came before has a peak of its own
    assert timed(step) == timed(step) == (12.5, 30.0, "loss")
    assert card.waits == 2, "before each, so that nothing earlier is in it"


def test_the_memory_of_a_stretch_is_its_own_peak_over_the_first_state(card: Card) -> None:
    memory = loaded("step").memory_of("cuda")
    card.work(1, needs=50, keeps=20)
    assert memory.read() == 50
    memory.reset()
    assert memory.read() == 20, "what is kept counts"
    card.work(1, needs=5)
    assert memory.read() == 25


def test_a_clock_of_steps_waits_for_the_card_before_it_looks(card: Card) -> None:
    step = loaded("step")
    product = type("Product", (), {"rates": lambda self: [1.0]})()
    clock = step.Clock(step.memory_of("cuda"), product, "cuda")
    for needs in (40, 30):
        clock.begin()
        before = card.waits
        card.work(1, needs=needs)
        clock.end()
        assert card.waits >= before + 1
    assert clock.mebibytes == [40, 30] and clock.rates == [1.0] and len(clock.seconds) == 2


def test_two_warm_ups_are_counted_as_memory_and_not_as_time(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    head = loaded("head")
    took = iter([(90, 300), (40, 200), (10, 70), (12, 80)])
    settled = []
    monkeypatch.setattr(head, "settle_library", lambda like: settled.append(like.dtype))

    def work(inputs: Any) -> None:
        assert inputs.hidden.grad is None, "each step begins without gradients"
        inputs.hidden.grad = torch.ones_like(inputs.hidden)
        card.work(*next(took))

    inputs = head.make_inputs({"tokens": 16, "vocabulary": 9, "width": 4, "dtype": "float32", "head": "frozen"})
    measured = head.measure_on_card(head.Contestant(None, bare=work), inputs, None, 2)
    assert measured == {
        "milliseconds": [10, 12], "first_milliseconds": 90, "mebibytes": 300, "warm_mebibytes": 80, "loss": None
    }  # fmt: skip
    assert settled == [torch.float32]


def test_a_contestant_on_the_card_gives_the_loss_of_the_cpu(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    head = loaded("head")
    case = {"tokens": 16, "vocabulary": 50, "width": 4, "dtype": "float32", "head": "frozen"}
    plain = head.measure("frozen head with summary", case, 1)
    make = head.make_inputs
    monkeypatch.setattr(head, "make_inputs", lambda asked: make({**asked, "device": "cpu"}))
    there = head.measure("frozen head with summary", {**case, "device": "cuda"}, 1)
    assert there["loss"] == pytest.approx(plain["loss"], rel=1e-6) and len(there["milliseconds"]) == 1


@needs_triton
@quiet
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_dpo_by_the_heads_own_kernels_is_dpo(kernels: pytest.MonkeyPatch, dtype: str) -> None:  # noqa: F811
    """In the interpreter where there is no GPU: the contestant that shows what the KL costs over plain DPO."""
    head = loaded("head")
    case = {"tokens": 16, "vocabulary": 75, "width": 8, "dtype": dtype, "head": "frozen", "device": DEVICE}
    found = []
    for name in ("naive DPO", "frozen DPO, same kernels"):
        inputs = head.make_inputs(case)
        contestant = head.CONTESTANTS[name]
        found.append((contestant.step(inputs, contestant.prepare(inputs)), inputs.hidden.grad.double()))
    (expected, gradient), (loss, own) = found
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # naive DPO's logits are rounded to bfloat16
    assert expected != pytest.approx(0.693147, abs=1e-3) and loss == pytest.approx(expected, rel=tolerance)
    assert (own - gradient).norm() <= tolerance * gradient.norm()


# ---- the contestants of a step ----


def test_each_trainer_runs_at_its_defaults_and_both_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants, limits = loaded("_step_contestants"), loaded("_gpu_limits")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(contestants, "train_tdpo", lambda task, loss, **changes: told.append(changes))
    monkeypatch.setattr(contestants, "train_trl", lambda task, **changes: told.append(changes))

    def settings(name: str) -> dict[str, Any]:
        contestants.CONTESTANTS[name].train(None)
        return {key: value for key, value in told[-1].items() if key not in ("precompute", "in_float32")}

    for name in (limits.OURS, limits.TRL, limits.TRL_PRECOMPUTED, *limits.FULL):
        assert settings(name) == {}, name
    assert [told[i]["precompute"] for i in (1, 2, 4)] == [False, True, False]
    for ours, theirs in (limits.BF16, limits.LIGER, limits.LIGHT, limits.FULL_BF16):
        assert settings(ours) == settings(theirs) and settings(ours)["bf16"] is True, ours
    assert settings(limits.CHECKPOINTING) == {"bf16": True, "gradient_checkpointing": True}, "as TRL's defaults"
    assert settings(limits.COMPILED)["torch_compile"] and settings(limits.LIGHT_COMPILED)["adapters_as_base"]


def test_trls_defaults_are_what_the_tables_say(tmp_path: Path) -> None:
    from trl import DPOConfig

    args = DPOConfig(str(tmp_path), use_cpu=True)
    assert args.bf16 and args.gradient_checkpointing and not args.precompute_ref_log_probs


@pytest.mark.slow
def test_adapters_are_held_as_asked_for(tmp_path: Path) -> None:
    step, contestants = loaded("step"), loaded("_step_contestants")
    model, tokenizer = loaded("_card").random_model, loaded("_card").byte_tokenizer()
    pairs = step.make_pairs(tokenizer, 4, 6, 4)
    for name, train in (("tdpo", contestants.train_tdpo), ("TRL", contestants.train_trl)):
        how = {"loss": "tdpo2"} if name == "tdpo" else {"precompute": True}
        for as_base in (True, False):
            clock = step.Clock(step.PeakMemory(), type("Product", (), {"rates": lambda self: [1.0]})())
            folder = str(tmp_path / f"{name}{as_base}")
            task = step.Task(model("tiny", "bfloat16", "cpu"), tokenizer, pairs, 2, "LoRA", folder, clock)
            outcome = train(task, **how, **contestants.PLAIN, adapters_as_base=as_base)
            trained = "bfloat16" if as_base else "float32"
            assert f"Trained weights: {trained}; frozen ones: bfloat16" in outcome.notes, outcome.notes
            assert len(outcome.losses) == 2


def test_times_are_shown_beside_the_first_of_trls_that_was_run() -> None:
    step = loaded("step")
    measured = step.Measurements.__new__(step.Measurements)
    names = ("tdpo TDPO2, LoRA, defaults", "TRL DPO, LoRA, Liger", "TRL DPO, LoRA, bf16")
    measured.entries = [step.Entry(step.Job(name, {}), [{"seconds": [1.0]}]) for name in names]
    assert step.baseline_of(measured, measured.entries[0]) is measured.entries[2]
    measured.entries[2].runs.clear()
    assert step.baseline_of(measured, measured.entries[0]) is measured.entries[1]
    assert step.baseline_of(measured, step.Entry(step.Job("tdpo TDPO2, full", {}))) is None


# ---- command lines ----


def test_precision_is_refused_too_where_there_is_no_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["precision.py", "--device", "cuda", "--output", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as ended:
        loaded("precision").main()
    assert ended.value.code == 2 and "torch finds no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["head", "step", "rollouts"])
def test_a_card_that_is_not_there_and_an_unknown_shape_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script = loaded(name)
    for given, said in (
        (["--device", "cuda", "--shape", "qwen3-1.7b"], "--device cuda: torch finds no GPU here"),
        (["--shape", "qwen9"], "argument --shape: invalid choice: 'qwen9' (choose from"),
    ):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(tmp_path / "none.json"), *given])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_say_what_else_was_installed() -> None:
    assert set(loaded("_harness").versions()) >= {"triton", "liger-kernel", "cut-cross-entropy", "torch", "commit"}


# ---- the session ----


def test_the_session_names_contestants_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit whose contestant had another name would be "not measured" after an hour on a card."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    session, scripts = importlib.import_module("gpu_session"), {}
    keys = {}
    for part in session.PARTS:
        script = importlib.import_module(part.script.removesuffix(".py"))
        derives = part.script == "precision.py"
        scripts[part.name] = set(script.PATHS if derives else script.CONTESTANTS)
        keys[part.name] = ("published lines",) if derives else script.KEYS
        for text in (part.arguments, part.dry):
            assert set(text.split("|")[1::2]) - {" "} <= scripts[part.name] | {""}, part.name
    for limit in session.LIMITS:
        assert {limit.of, *limit.over} <= scripts[limit.part], limit.what
        assert limit.key in keys[limit.part], limit.what
        part = next(part for part in session.PARTS if part.name == limit.part)
        asked = set(part.arguments.split("|")[1::2])
        assert not asked or {limit.of, *limit.over} <= asked, "it is measured"


def test_the_session_judges_only_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    session = importlib.import_module("gpu_session")
    limits = importlib.import_module("_gpu_limits")
    faster = limits.Limit("a / b", "p", "a", ("b",), "seconds", 0.7)
    more = limits.Limit("b / a", "p", "b", ("a",), "seconds", 1.5, at_least=True)
    both = [{"contestant": n, "case": {}, "summary": {"seconds": {"median": m}}} for n, m in (("a", 3.0), ("b", 6.0))]
    assert session.judged(faster, {"p": {"entries": both}}) | {"value": 0.5, "met": True} == session.judged(
        faster, {"p": {"entries": both}}
    )
    assert session.judged(more, {"p": {"entries": both}})["met"] is True
    best = limits.Limit("a / the best of b and c", "p", "a", ("b", "c"), "seconds", 0.7)
    third = {"contestant": "c", "case": {}, "summary": {"seconds": {"median": 4.0}}}
    assert session.judged(best, {"p": {"entries": [*both, third]}})["value"] == 0.75, "c is the faster one"
    assert session.judged(best, {"p": {"entries": both}})["value"] is None, "c might be the best"
    for results in ({}, {"p": {"entries": both[:1]}}, {"p": {"entries": [{**both[0]}, {**both[1], "summary": {}}]}}):
        assert session.judged(faster, results)["met"] is None and session.judged(faster, results)["value"] is None


def test_a_session_keeps_what_it_has_when_time_is_up_or_a_part_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    session = importlib.import_module("gpu_session")
    monkeypatch.setattr(session, "ORDER", ["kernels", "p", "tests"])
    sleeps = "import pathlib, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pathlib.Path('interrupted').touch()"
    monkeypatch.setattr(session, "ROOT", tmp_path)
    monkeypatch.setattr(
        session, "TESTS", {"kernels": ["/no/such/program"], "tests": [sys.executable, "-c", sleeps]}
    )  # fmt: skip
    monkeypatch.setattr(session, "PARTS", [importlib.import_module("_gpu_limits").Part("p", "p.py", "", "")])
    (tmp_path / "gpu-p.json").write_text("{}")
    os.utime(tmp_path / "gpu-p.json", (1, 1))
    read = []
    monkeypatch.setattr(session, "judged", lambda limit, results: read.append(dict(results)) or {
        "what": "", "part": "", "value": None, "limit": 1.0, "met": None
    })  # fmt: skip
    assert session.measure(["kernels", "p", "tests", "more"], tmp_path, False, minutes=2.5 / 60) == 1
    written = json.loads((tmp_path / "gpu-session.json").read_text())
    assert written["ends"] == {"kernels": "failed", "p": "failed", "tests": "ended by the time", "more": "not begun"}
    assert (tmp_path / "interrupted").exists(), "it was told as by Ctrl-C"
    assert read and all(results == {} for results in read), "an older file is no result of this session"
    assert "NOT BEGUN: more" in capsys.readouterr().err


def test_a_short_session_measures_what_the_limits_are_about(tmp_path: Path) -> None:
    limits = loaded("_gpu_limits")
    for part in limits.PARTS:
        command = part.command(tmp_path, False, short=True)
        about = {name for limit in limits.LIMITS if limit.part == part.name for name in (limit.of, *limit.over)}
        assert about, f"{part.name}: nothing would be judged"
        if part.script == "precision.py":
            assert command == part.command(tmp_path, False)
            continue
        last = len(command) - 1 - command[::-1].index("--contestants")
        assert set(command[last + 1 : command.index("--output")]) == about
        assert command[last - 2 : last] == ["--rounds", "2"]
        assert command[: len(part.command(tmp_path, False)) - 2] == part.command(tmp_path, False)[:-2]


def test_short_is_refused_where_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for given in ("--judge", "--dry-run"):
        monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--short", given, "--folder", str(tmp_path / "none")])
        with pytest.raises(SystemExit):
            loaded("gpu_session").main()
        assert "--short has no effect here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_a_benchmark_derives_is_judged_too() -> None:
    limits = loaded("_gpu_limits")
    limit = next(limit for limit in limits.LIMITS if limit.part == "precision")
    for derived, met in (({limit.of: 0.01}, True), ({limit.of: 0.03}, False), ({}, None)):
        assert limits.judged(limit, {"precision": {"derived": {"published lines": derived}}})["met"] is met
    assert limits.judged(limit, {})["met"] is None


def test_parts_are_chosen_by_name_or_by_beginning() -> None:
    session = loaded("gpu_session")
    chosen = {word: [part for part in session.ORDER if session.names(word, part)] for word in ("step", "step-l", "x")}
    assert chosen == {"step": ["step"], "step-l": ["step-liger", "step-long-prompts"], "x": []}


def test_random_weights_come_with_a_tokenizer_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tokenizer = importlib.import_module("_card").byte_tokenizer()
    ids = tokenizer("naïve 時").input_ids
    assert tokenizer.decode(ids) == "naïve 時" and len(ids) == 10 and max(ids) < 259 and min(ids) > 2
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


# ---- the table in the pages ----


def made_up(**medians: float) -> dict[str, Any]:
    """A result file of the part "step" from a card."""
    limits = loaded("_gpu_limits")
    names = {"ours": limits.OURS, "trl": limits.TRL}
    entries = [
        {"contestant": names[name], "case": {}, "summary": {"seconds": {"median": median}}}
        for name, median in medians.items()
    ]
    hardware = {"card": "NVIDIA X", "driver": "1.2", "cuda": "13.0"}
    return {"entries": entries, "hardware": hardware, "versions": {"torch": "2.13"}}


def test_the_pages_show_what_the_result_files_hold_and_nothing_else() -> None:
    pages, session = loaded("_gpu_pages"), loaded("gpu_session")
    results = session.results_in(session.RESULTS, False, None)
    for name in pages.PAGES:
        page = (BENCHMARKS.parent / name).read_text("utf-8")
        assert pages.between_marks(page) == pages.page_table(results), f"{name}: gpu_session.py --judge --pages"
        assert page.index(pages.BEGIN) < page.index("-avx2.json"), "before the tables of a CPU"


def test_a_measured_table_is_put_between_the_marks(tmp_path: Path) -> None:
    pages = loaded("_gpu_pages")
    (tmp_path / "benchmarks").mkdir()
    for name in pages.PAGES:
        (tmp_path / name).write_text(f"above\n{pages.BEGIN}\nold\n{pages.END}\nbelow\n")
    pages.fill_pages(tmp_path, {"step": made_up(ours=8.0, trl=10.0)})
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("above\n") and page.endswith("\nbelow\n") and "old" not in page
    assert "On NVIDIA X (driver 1.2, CUDA 13.0, torch 2.13, " in page
    assert "each at its defaults / TRL's DPO | **0.80, missed** | at most 0.7 |" in page
    assert "LoRA step, alike: Liger | not measured |" in page
    faster = pages.page_table({"step": made_up(ours=5.0, trl=10.0)})
    assert "TRL's DPO | 0.50 | at most 0.7 |" in faster
    on_cpu = {**made_up(ours=5.0, trl=10.0), "hardware": {"cpu": "X"}}
    assert pages.page_table({"step": on_cpu}) == pages.page_table({}) == pages.NOTHING, "a CPU is no card"


def test_pages_are_filled_from_the_results_of_the_repository_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    session = loaded("gpu_session")
    for given in (["--pages"], ["--judge", "--pages", "--folder", str(tmp_path)], ["--judge", "--pages", "--dry-run"]):
        monkeypatch.setattr(sys, "argv", ["gpu_session.py", *given])
        with pytest.raises(SystemExit):
            session.main()
        assert "--pages goes with --judge alone" in capsys.readouterr().err
