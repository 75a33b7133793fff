"""Names, keys and texts of other people where they are shown: terminal, logs, CSV, model card, report; and output that
cannot be written."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tdpo.cli import _console, _errors
from tdpo.cli._tables import comparison_table
from tdpo.cli.app import app
from tdpo.config import load_recipe
from tdpo.guards.texts import cell_text, markdown_text, printable, printable_json, quoted_yaml, spreadsheet_cell
from tdpo.records.json_files import read_json
from tdpo.records.study_tables import CellKey, ResponseRow, read_responses, write_responses
from tdpo.report.run_reading import load_runs
from tdpo.report.study.study_reading import load_study
from tdpo.workflows.model_card import model_card, own_responses_model_card

RED = "\x1b[31mred\x1b]0;title\x07"
FAST = settings(max_examples=100, deadline=None)


def test_what_moves_a_cursor_is_shown_by_its_number() -> None:
    assert printable("a\x1b[2J\x9b1m\u202e\u2028\ud800\U000e0041") == r"a\x1b[2J\x9b1m\u202e\u2028\ud800\U000e0041"
    for harmless in ("tab\tline\n", "é 日本語\u3000です", "a\xa0b", "👩\u200d🔬", "می\u200cخواهم"):
        assert printable(harmless) == harmless


@FAST
@given(st.text())
def test_printing_is_safe_and_done_once(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(printable(text))
    assert json.loads(printable_json({"a": text})) == {"a": text} and "\n" not in printable_json(text)


# The terminal


def test_everything_printed_passes_the_same_place(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(title=RED)
    table.add_column(RED)
    table.add_row(RED)
    _console.out().print(table)
    _console.out().print(f"[bold]{RED}[/bold]")
    _console.write(RED)
    _console.say(RED)
    with _console.progress(RED) as update:
        update(1, 2, RED)
    shown = capsys.readouterr()
    for stream, least in ((shown.out, 5), (shown.err, 3)):
        assert "\x1b" not in stream and "\x07" not in stream and stream.count(r"\x1b[31mred") >= least


def test_brackets_in_names_are_no_markup_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"settings": {"environment": "[/e]"}, "generations": {"trained": {"reward_mean": 1.0}}}
    _console.out().print(comparison_table({"[/run]": evaluation, "[red]run": evaluation}))
    shown = capsys.readouterr().out
    assert "[/e]" in shown and "[/run]" in shown and "[red]run" in shown


def test_our_own_colours_and_bars_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    console = _console._console(stderr=True, force_terminal=True, color_system="standard")
    monkeypatch.setattr(_console, "err", lambda: console)
    _console.say(RED, style="bold red")
    with _console.progress(RED) as update:
        update(1, 2, RED)
    shown = capsys.readouterr().err
    assert "\x1b[1;31m" in shown and "\x1b[31mred" not in shown and "\x07" not in shown


def test_logs_and_warnings_are_printed_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    library = logging.getLogger("some_library")
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(library, "handlers", [handler])
    monkeypatch.setattr(library, "propagate", False)
    _console.say_logs()
    _console.say_logs()
    library.warning("model %s", RED)
    record = logging.LogRecord("tdpo.training", logging.WARNING, "x.py", 1, "row %s", (RED,), None)
    assert logging.lastResort is not None
    logging.lastResort.handle(record)
    shown = capsys.readouterr().err
    assert shown.splitlines() == [f"model {printable(RED)}", f"row {printable(RED)}"]
    assert warnings.formatwarning(UserWarning(RED), UserWarning, "f", 1) == f"UserWarning: {printable(RED)}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [RED], [f"--{RED}"], ["train", f"{RED}.yaml"], ["train", "r.yaml", f"{RED}=1"], ["train", f"--{RED}"],
        ["recipe", RED], ["recipe", "--example", RED], ["generate", "m", "--seed", RED], ["report", RED],
        ["merge", RED, "out"], ["evaluate", RED], ["compare", RED, "--dry-run"], ["doctor", RED], ["ppo", RED],
        ["pairs", RED, "out.jsonl"], ["train", "r.yaml", f'run_dir="{RED}"'], ["doctor", "\0"], ["train", "\udc80"],
    ],
)  # fmt: skip
def test_arguments_that_would_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("run_dir: run\ndata: {train: rows.jsonl}\n")
    done = CliRunner().invoke(app, arguments, prog_name="tdpo")
    assert done.exit_code in (1, 2), done.output
    assert not {"\x1b", "\x07", "\0"} & set(done.output) and "not expected" not in done.output


def test_a_traceback_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(RED)
    except RuntimeError as error:
        _errors.report(error, debug=True)
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "\x1b" not in shown and printable(RED) in shown


# Output that cannot be written


def run_main(code: str, output: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys\nfrom tdpo.cli.main import main\n{code}\nmain()"]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_went_away_ends_the_command_without_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_main("sys.argv = ['tdpo', 'recipe', '--example', 'study']", writing)
    os.close(writing)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = run_main("sys.argv = ['tdpo', 'recipe', 'loss']", full)
    assert done.returncode == 1 and "No space left on device" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space on the disk"),
        (OSError(errno.ENOSPC, "No space left on device", "run/x"), "run/x: No space left on device"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)
def test_what_the_machine_refuses_is_expected(capsys: pytest.CaptureFixture[str], error: Exception, said: str) -> None:
    assert _errors.report(error, debug=False) == _errors.FAILURE
    shown = capsys.readouterr().err
    assert said in shown and "not expected" not in shown


def test_a_traceback_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_errors.tempfile, "NamedTemporaryFile", full)
    assert _errors.report(KeyError("x"), debug=False) == _errors.FAILURE
    assert "could not be kept (No space left on device)" in capsys.readouterr().err


# Spreadsheets

FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''@x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_cell_is_never_a_formula(text: str) -> None:
    assert spreadsheet_cell(text) == f"'{text}" and cell_text(spreadsheet_cell(text)) == text


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-05", "0", "a=b", "'quoted'", "", "it's", "'"])
def test_numbers_and_plain_text_stay(text: str) -> None:
    assert spreadsheet_cell(text) == text and cell_text(text) == text


@FAST
@given(st.text(st.sampled_from("'=+-@\t\r\n＝1e.ax"), max_size=6) | st.text(max_size=6))
def test_every_cell_reads_back(text: str) -> None:
    assert cell_text(spreadsheet_cell(text)) == text


def test_responses_with_formulas_read_back_here_and_in_the_report(tmp_path: Path) -> None:
    cell = CellKey("=task", "dpo", "0.1", 0)
    rows = [
        ResponseRow(cell, f"{i:02}", f"@{text}", i, text, -1.5, 3, True, -0.25, "=mode")
        for i, text in enumerate(FORMULAS)
    ]
    write_responses(tmp_path / "responses.csv", rows)
    assert read_responses(tmp_path / "responses.csv") == rows
    with (tmp_path / "responses.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            assert line["reward"] == "-1.5" and line["reverse_kl"] == "-0.25"
            assert all(line[name][0] not in "=+-@\t\r\n" for name in ("task", "prompt", "text", "mode"))
    (tmp_path / "about.json").write_text('{"schema": 1}')
    (tmp_path / "results.csv").write_text("task,arm,strength,seed,metric,value,low,high\n")
    shown = load_study(tmp_path).responses
    assert [r.text for r in shown] == FORMULAS and {r.task for r in shown} == {"=task"} and shown[0].reward == -1.5


# The model card

NAME = 'a/<img src=x onerror="alert(1)">[b](http://c)\n# `d`|*e*|_f_'


def card(name: str) -> str:
    values = {"run_dir": "r", "data": {"train": "rows.jsonl"}, "model": {"name": "m", "reference": "r"}}
    recipe: Any = load_recipe(values)
    model = recipe.model.model_copy(update={"name": name, "reference": name})
    recipe = recipe.model_copy(update={"model": model})
    part = {"pairs": 1, "source": name, "rows": 1, "skipped": 0, "truncated_rows": 0, "max_length": 9}
    return model_card(recipe, {"train": part}, {"loss": 0.5}, None, {"torch": "2"})


def test_names_are_no_markup_in_the_model_card() -> None:
    text = card(NAME)
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == NAME
    assert "<img" not in body and not re.search(r"(?<!\\)\]\(", body) and "`d`" not in body.replace(r"\`", "")
    assert body.count(markdown_text(NAME)) == 3 and [x for x in body.splitlines() if x.startswith("# ")] == [
        f"# {markdown_text(NAME)}, trained with TDPO2"
    ]
    prompts: Any = load_recipe(
        {
            "run_dir": "r",
            "ppo": {},
            "prompts": {"train": "p"},
            "rewards": [{"model": "m"}],
            "rollouts": {"max_new_tokens": 4},
        }
    )
    prompts = prompts.model_copy(update={"prompts": prompts.prompts.model_copy(update={"train": NAME})})
    assert f"- 3 prompts of {markdown_text(NAME)}" in own_responses_model_card(prompts, 3, {}, None, {})


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "runs/my_run_2/model", "~/data/rows.jsonl"])
def test_ordinary_names_stand_in_the_card_as_they_are(name: str) -> None:
    text = card(name)
    assert f"\nbase_model: {json.dumps(name)}\n" in text and f"# {name}, trained" in text and f"from {name} (" in text


@FAST
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_yaml_is_the_text(text: str) -> None:
    assert yaml.safe_load(f"a: {quoted_yaml(text)}")["a"] == text and quoted_yaml(text).isascii()


# Documents that are read for a report


def test_a_bomb_in_a_run_directory_is_a_note(tmp_path: Path) -> None:
    lines = ["a: &a [1, 2]"] + [
        f"{n}: &{n} [{', '.join([f'*{b}'] * 9)}]" for b, n in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    (tmp_path / "evaluation.json").write_text('{"a":' * 5000 + "1" + "}" * 5000)
    (tmp_path / "metrics.jsonl").write_text("[" * 5000 + "\n" + '{"step": 1, "loss": 2.0}\n')
    (run,) = load_runs([tmp_path])
    notes = " ".join(run.notes)
    assert "recipe.yaml stands for" in notes and "evaluation.json is not valid JSON (lists and objects" in notes
    assert "metrics.jsonl: line 1 is not a JSON object" in notes and len(run.metrics) == 1
    with pytest.raises(ValueError, match=r"evaluation\.json: not JSON: lists and objects inside one another"):
        read_json(tmp_path / "evaluation.json")


@pytest.fixture(autouse=True)
def _signals_as_before() -> Any:
    import signal

    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
