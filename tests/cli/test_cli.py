"""The command line: help without heavy imports, exit codes, messages without tracebacks, and what commands call."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helpers.warm_processes import WarmProcess
from tdpo.cli import _console, _errors
from tdpo.cli import demo as demo_module
from tdpo.config import load_recipe
from tdpo.environments import Environment, Prompt
from tdpo.installation import extra_command
from tdpo.records.json_files import read_json
from tdpo.runs import RunDirectory, mark_complete

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "demo", "explain", "doctor", "recipe", "pairs", "train", "ppo", "scale", "merge", "push", "generate", "evaluate",
    "compare", "exact", "report",
)  # fmt: skip
Call = Callable[..., Result]


def pair_rows(count: int) -> list[dict[str, Any]]:
    def row(i: int) -> dict[str, Any]:
        turn = {"role": "user", "content": f"question {i}"}
        chosen, rejected = f"a wonderful day {i}", f"a terrible answer {i}"
        return {
            "prompt": [turn],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }

    return [row(i) for i in range(count)]


def letters(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """A reward that a random model's text differs in."""
    return [sum(map(str.isalpha, text)) / 10 for text in completions]


@pytest.fixture
def small_environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Six prompts to train on, three held out, in place of the built-in ones."""

    def prompts(split: str, count: int) -> list[Prompt]:
        return [Prompt(f"{split}-{i}", [{"role": "user", "content": f"{split} {i}"}]) for i in range(count)]

    made = Environment("sentiment", prompts("train", 6), prompts("held_out", 3), letters, "letters", 8, "a test")
    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: made)
    return made


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A recipe of four updates on a tiny model, with rows to train on."""
    lines = [json.dumps(row) for row in pair_rows(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}'}}\ndata: {{train: pairs.jsonl}}\n"
        "training: {batch_size: 4, max_steps: 4, save_steps: 2}\nenvironment: {name: sentiment}\n"
    )
    return path


# Help

IMPORTED_AFTER_HELP = """
import sys
from tdpo.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "datasets", "peft", "plotly", "jinja2", "numpy", "yaml"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["demo", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", IMPORTED_AFTER_HELP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(call: Call, command: str) -> None:
    shown = call(command, "--help")
    assert shown.exit_code == 0
    assert "Examples" in shown.output and f"    tdpo {command}" in shown.output
    assert "bool" not in shown.output, "a flag takes no value"


def test_the_examples_in_the_help_are_valid_commands(call: Call) -> None:
    """Every option named in an example exists, and every override in one is a key."""
    from tdpo.config._explain import SCHEMAS, fields

    keys = {key for schema in SCHEMAS for key, _ in fields(schema)}
    for command in COMMANDS:
        text = call(command, "--help").output
        for line in text.splitlines():
            if not line.startswith("     tdpo "):
                continue
            words = line.split()
            options = {w.partition("=")[0] for w in words if w.startswith("-")}
            overrides = {w.partition("=")[0] for w in words if "=" in w and not w.startswith("-")}
            used = call(words[1], "--help").output
            assert all(option in used for option in options), line
            assert overrides <= keys, line


def test_without_arguments_the_help_appears(call: Call) -> None:
    shown = call()
    assert all(command in shown.output for command in COMMANDS)


def test_version(call: Call) -> None:
    assert call("--version").output.startswith("tdpo 0.")


def test_the_installed_command_starts() -> None:
    done = subprocess.run([sys.executable, "-m", "tdpo", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("tdpo ")


def test_a_plain_installation_says_what_the_command_line_needs() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom tdpo.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"tdpo: the command line needs typer; install it with: {extra_command('train')}\n"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "r.yaml", "--resme"], "--resume"),
        (["train", "r.yaml", "--loss.beta=2"], "Overrides have no dashes: loss.beta=VALUE"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "loss.beta=2"], "the recipe file comes first"),
        (["train", "none.yaml"], "none.yaml: does not exist"),
        (["train", ".."], "recipe.yaml: does not exist"),
        (["train", "recipe.yaml", "loss.bta=2"], "unknown key; did you mean loss.beta?"),
        (["train", "recipe.yaml", "loss.beta=x"], "loss.beta: expected a number > 0, or null, got the text 'x'"),
        (["train", "recipe.yaml", "--resume", "--overwrite"], "give one of them"),
        (["train", "recipe.yaml", "data.train=none.jsonl"], "none.jsonl"),
        (["train", "recipe.yaml", "model.name=./nowhere"], "nowhere"),
        (["pairs", "recipe.yaml", "environment=null", "--out", "o.jsonl"], "the recipe has no environment"),
        (["pairs", "recipe.yaml", "--split", "held_out"], "data.eval is None, not a .jsonl file"),
        (["pairs", "recipe.yaml", "--split", "test"], "'test' is not one of"),
        (["merge", "nowhere", "out"], "nowhere"),
        (["merge", "nowhere", "."], ". exists and is not empty"),
        (["generate", "smollm2-135m", "-p", "a", "-f", "b"], "give one of them"),
        (["generate", "smollm2-135m", "-p", ""], "is empty"),
        (["generate", "smollm2-135m", "-f", "none.txt"], "none.txt: no such file or folder"),
        (["generate", "smollm2-135m", "-f", "notes.md"], "files of this kind (.md) are not read. Known are .jsonl"),
        (["generate", "smollm2-135m", "-f", "broken.jsonl"], "broken.jsonl:3: prompt: is missing (the row has promt;"),
        (["generate", ".", "-p", "a", "--base"], "--base needs a run directory"),
        (["generate", "x", "-p", "a", "--samples", "0"], "Invalid value for '--samples'"),
        (["evaluate", "."], "is no run directory"),
        (["evaluate", "nowhere"], "nowhere is no run directory: it does not exist"),
        (["report", "nowhere"], "nowhere"),
        (["recipe", "los"], "did you mean loss?"),
        (["recipe", "--example", "mine"], "'mine' is not one of"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_a_message_and_code_2(
    call: Call, recipe_file: Path, arguments: list[str], message: str
) -> None:
    Path("notes.md").write_text("a prompt?\n", encoding="utf-8")
    Path("broken.jsonl").write_text('{"prompt": "a"}\n\n{"promt": "b"}\n', encoding="utf-8")
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert "Traceback" not in done.output and "Did not expect" not in done.output


def test_debug_shows_the_traceback(call: Call) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tdpo", "evaluate", "nowhere", "--debug"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("error: nowhere is no run")


def test_several_problems_of_a_recipe_are_all_printed(call: Call, recipe_file: Path) -> None:
    done = call("train", str(recipe_file), "loss.bta=2", "seed=x", "training.epochs=0")
    assert done.exit_code == 2 and "the recipe has 3 problems" in done.output


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("x"), 1, "KeyError: 'x'"),
        (ModuleNotFoundError("No module named 'vaderSentiment'", name="vaderSentiment"), 1, extra_command("eval")),
        (ModuleNotFoundError("No module named 'plotly.x'", name="plotly.x"), 1, extra_command("eval")),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 1, "wandb is not installed; pip install wandb"),
        (MemoryError("no room"), 1, "out of memory: no room\nless is needed with training.micro_batch_size=1"),
        (_errors.CommandError("[not markup]"), 2, "[not markup]"),
    ],
)
def test_what_an_error_says_and_ends_with(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @_errors.guarded
    def command() -> None:
        raise error

    with pytest.raises(_errors.typer.Exit) as ended:
        command()
    shown = capsys.readouterr().err
    assert ended.value.exit_code == code and message in shown
    named = [word for word in shown.split() if "tdpo-traceback" in word]
    if isinstance(error, _errors.CommandError):
        assert not named
    elif named:
        assert "Traceback" in Path(named[0]).read_text(encoding="utf-8")
        Path(named[0]).unlink()


def test_sigterm_ends_like_ctrl_c_with_its_own_code() -> None:
    code = (
        "import os, signal, typer\nfrom tdpo.cli._errors import guarded\n"
        "@guarded\ndef f():\n    os.kill(os.getpid(), signal.SIGTERM)\n    import time; time.sleep(5)\n"
        "typer.run(f)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143 and "terminated" in done.stderr


# Printing


def test_model_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _console.write("[red]a[/red]\x1b[2J\x07 é\n")
    assert capsys.readouterr().out == "[red]a[/red]\\x1b[2J\\x07 é\n\n"


@pytest.mark.parametrize(("seconds", "text"), [(5.23, "5.2 s"), (61, "1 min 01 s"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert _console.duration(seconds) == text


def test_progress_without_a_terminal_is_lines_with_an_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 40.0, 45.0, 50.0])
    monkeypatch.setattr(_console.time, "monotonic", lambda: next(clock))
    with _console.progress("work") as update:
        update(0, 10, "")
        update(5, 10, "loss 1")
        update(6, 10, "")
        update(10, 10, "loss 0")
    assert capsys.readouterr().err.splitlines() == [
        "work: 5 of 10 after 40.0 s, about 30.0 s left · loss 1",
        "work: 10 of 10 after 50.0 s · loss 0",
    ]


def test_progress_on_a_terminal_is_a_bar_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(_console, "err", lambda: Console(stderr=True, force_terminal=True, width=120))
    with _console.progress_in_stages("run") as update:
        update("pairs [1]", 1, 2)
        update("pairs [1]", 2, 2)
        update("generations", 1, 3)
    shown = capsys.readouterr().err
    assert "run: pairs [1]" in shown and "2/2" in shown and "run: generations" in shown and "1/3" in shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_progress_line_never_cuts_the_count_and_the_time_left(width: int) -> None:
    from tdpo.cli._progress_line import progress_line

    note = "reward 0.123 · KL 1.23 reverse, 1.21 forward · coefficient 0.0652"
    for label in ("ppo: updates", "tdpo2: pairs for the reference cache", "a run of a very long name: " * 4):
        line = progress_line(width, label, 1234, 5678, elapsed=3725, left=83, note=note).plain
        assert len(line) <= width, "nothing is left for a terminal to cut"
        assert "1234/5678" in line and "0:01:23 left" in line
        assert line.endswith(("left", "0.123", "forward", "0.0652")), "no number of the note is cut"
    assert "reward 0.123" in progress_line(width, "ppo: updates", 3, 5, elapsed=1, left=2, note=note).plain
    everything = progress_line(200, "ppo", 3, 5, elapsed=3725, left=None, note=note).plain
    assert note in everything and "1:02:05" in everything and "-:--:-- left" in everything


def test_the_bar_of_a_narrow_terminal_shows_count_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(_console, "err", lambda: Console(stderr=True, force_terminal=True, width=60))
    with _console.progress("tdpo2: pairs for the reference cache") as update:
        update(12, 256, "margin +0.12 · chosen KL 0.12 nats · 1234 tokens/s")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).strip().splitlines()[-1]
    assert "12/256" in last and last.rstrip().endswith("left") and len(last.rstrip()) <= 60, last


# recipe


def test_recipe_lists_keys_and_prints_examples(call: Call, tmp_path: Path) -> None:
    listed = call("recipe").output
    assert "loss.alpha  default null; a number ≥ 0, or null" in listed and "run_dir  required" in listed
    one = call("recipe", "training.epochs").output
    assert "training.epochs" in one and "loss" not in one
    example = call("recipe", "--example", "preferences").stdout
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").loss.name == "tdpo2"
    assert call("recipe", "--markdown").stdout == (ROOT / "docs/recipe.md").read_text(encoding="utf-8")


# train, merge, generate on a tiny model


@pytest.mark.slow
def test_train_resume_generate_merge_on_a_tiny_model(call: Call, recipe_file: Path) -> None:
    done = call("train", str(recipe_file))
    assert done.exit_code == 0, done.output
    assert read_json(Path("run/status.json"))["state"] == "finished"
    assert "the model is in run" in done.output and "Traceback" not in done.output

    again = call("train", str(recipe_file))
    assert again.exit_code == 2 and "--overwrite replaces it" in again.output
    resumed = call("train", "run", "--resume")
    assert resumed.exit_code == 0 and "run is finished (step 4)" in resumed.output
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"}
    mistyped = call("train", str(recipe_file), "--overwrite", "model.lora.targets=[no_such_layer]")
    assert mistyped.exit_code == 2 and "the run in run is as it was" in mistyped.output, mistyped.output
    assert all(path.read_bytes() == content for path, content in before.items())
    other = call("train", "run", "--resume", "loss.beta=0.3")
    assert other.exit_code == 2 and "loss.beta: the run has 0.1, the recipe 0.3" in other.output

    assert call("merge", "run", "merged").exit_code == 0
    assert not Path("merged/adapter_config.json").exists()
    ask = ["-p", "question 1", "--temperature", "0", "--max-new-tokens", "6", "--json"]
    trained, merged = (call("generate", name, *ask) for name in ("run", "merged"))
    assert trained.exit_code == 0, trained.output
    first, second = (json.loads(result.stdout) for result in (trained, merged))
    assert first["text"] == second["text"] and first["prompt"] == "question 1"
    both = [json.loads(line) for line in call("generate", "run", *ask, "--base").stdout.splitlines()]
    assert [entry["model"] for entry in both] == ["base", "trained"] and both[1]["text"] == first["text"]
    twice = call("merge", "merged", "again")
    assert twice.exit_code == 2 and "no adapter to merge" in twice.output


@pytest.mark.slow
def test_ipo_is_trained_evaluated_and_reported_by_its_name(call: Call, recipe_file: Path) -> None:
    changes = ["loss.name=ipo", "loss.beta=0.2", "environment=null", "data.eval_fraction=0.25"]
    assert call("doctor", str(recipe_file), *changes).exit_code == 0
    done = call("train", str(recipe_file), *changes)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["loss"] == pytest.approx(1 / (4 * 0.2**2)) and lines[0]["margin"] == 0.0
    [held_out] = [line for line in lines if line["split"] == "eval"]
    assert held_out["margin"] == pytest.approx(held_out["chosen_reward"] - held_out["rejected_reward"], abs=1e-6) != 0
    card = Path("run/model/README.md").read_text(encoding="utf-8")
    assert "trained with IPO" in card and "arXiv 2310.12036" in card and "- loss ipo, beta 0.2\n" in card
    judged = call("evaluate", "run")
    assert judged.exit_code == 0, judged.output
    assert "written: run/evaluation.json\n" in judged.output and not Path("run/samples.jsonl").exists()
    assert "evaluation.max_prompts=32 has both models answer" in judged.output.replace("\n", " ")
    found = read_json(Path("run/evaluation.json"))
    assert found["run"]["loss"] == "ipo" and found["pairs"]["margin"] == pytest.approx(held_out["margin"], abs=1e-5)
    other = call("evaluate", "run", "--data", "pairs.jsonl", "--out", "elsewhere")
    assert other.exit_code == 0, other.output
    judged_on = [found["pairs"], read_json(Path("elsewhere/evaluation.json"))["pairs"]]
    assert [pairs["held_out"] for pairs in judged_on] == [True, None], "of another file nobody knows"
    assert call("report", "run", "--out", "report.html").exit_code == 0
    assert "IPO, β = 0.2" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_says_where_the_run_is_and_resume_ends_it(
    call: Call, recipe_file: Path, number: signal.Signals, status: int
) -> None:
    arguments = ["train", str(recipe_file), "training.max_steps=2000"]
    started = WarmProcess("tdpo", *arguments)
    try:
        while not list(Path("run").glob("checkpoint-*/COMPLETE")):
            assert started.poll() is None, started.errors
            time.sleep(0.02)
        started.send_signal(number)
        _, shown = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == status, shown
    assert "Continue: tdpo train run --resume" in shown and "Traceback" not in shown
    run = RunDirectory("run")
    assert run.status()["state"] == "interrupted" and run.resume_step() >= 2
    refused = call(*arguments)
    assert refused.exit_code == 2 and "--resume continues it" in refused.output


def test_generate_reads_prompts_from_standard_input_and_files(
    call: Call, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = str(tiny_folder("gpt2"))
    options = ["--max-new-tokens", "2", "--json", "--temperature", "0"]
    piped = call("generate", model, *options, input="two\nlines\n")
    assert json.loads(piped.stdout)["prompt"] == "two\nlines"
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    lines = call("generate", model, *options, "-f", "a.txt").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["one", "two"]
    turns = [{"role": "user", "content": "hi"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": turns}) + '\n{"prompt": "plain"}\n', encoding="utf-8")
    lines = call("generate", model, *options, "-f", "a.jsonl").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [turns, "plain"]
    text = "one\u2028the same\x0cstill"
    rows = json.dumps({"prompt": text, "completions": 3}, ensure_ascii=False) + "\n"
    for name, content in (
        ("a.txt", f"{text}\n"),
        ("A.JSONL", rows),
        ("a.ndjson", rows),
        ("a.csv", f'prompt\n"{text}"\n'),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        lines = call("generate", model, *options, "-f", name).stdout.split("\n")
        assert [json.loads(line)["prompt"] for line in lines if line] == [text], name
    longer = [model, "-p", "one", "--max-new-tokens", "8", "--json", "--temperature", "0"]
    chat, raw = (json.loads(call("generate", *longer, *flag).stdout) for flag in ([], ["--raw"]))
    assert chat["text"] != raw["text"] and chat["prompt"] == raw["prompt"] == "one"
    nothing = call("generate", model, *options, input="")
    assert nothing.exit_code == 2 and "is empty" in nothing.output


# doctor


def test_doctor_without_a_recipe(call: Call) -> None:
    done = call("doctor")
    assert done.exit_code == 0 and done.output.rstrip().endswith("ready")
    for word in ("versions", "torch", "usable cores", "free here", "smollm2-135m", "extra eval"):
        assert word in done.output


def test_doctor_checks_recipe_model_and_data(call: Call, recipe_file: Path) -> None:
    done = call("doctor", str(recipe_file))
    assert done.exit_code == 0, done.output
    for text in ("llama, 2 layers, hidden size 32", "pairs.jsonl: 8 rows", "longest", "about 4 updates of 4 pairs"):
        assert text in done.output
    assert not Path("run").exists()


def test_doctor_lists_all_problems(call: Call, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*pair_rows(1), {**pair_rows(1)[0], "rejected": 7}]
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("", encoding="utf-8")
    overrides = ["model.name=./none", "data.train=bad.jsonl", "environment.name=sentimnt", "training.report_to=[wandb]"]
    monkeypatch.setattr("tdpo.workflows.prerequisites.find_spec", lambda name: None)
    done = call("doctor", str(recipe_file), *overrides)
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last == "5 problems: run_dir, packages, environment, model, data"
    assert "bad.jsonl:2: rejected" in done.output and "pip install wandb" in done.output


def test_doctor_counts_truncation(call: Call, recipe_file: Path) -> None:
    done = call("doctor", str(recipe_file), "data.max_length=18")
    assert done.exit_code == 0 and "rows are longer than max_length=18" in done.output


def test_doctor_on_a_broken_recipe(call: Call, recipe_file: Path) -> None:
    done = call("doctor", str(recipe_file), "loss.bta=1")
    assert done.exit_code == 1 and "did you mean loss.beta?" in done.output


def test_a_missing_requirement_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from tdpo.cli import _machine_checks as checks

    wanted = ["nothing-of-this-name>=1; extra == 'eval'", "typer>=999; extra == 'eval'", "rich; extra == 'train'"]
    monkeypatch.setattr(checks, "requires", lambda name: wanted)
    found = checks._extra("eval", "reports")
    assert found.state == "note" and "missing nothing-of-this-name, typer >=999 (installed:" in found.text
    assert extra_command("eval") in found.text
    assert checks._extra("train", "").state == "ok"


# What the commands call, with fakes in place of what takes long


EVALUATION: dict[str, Any] = {
    "settings": {"environment": "sentiment", "reward": "VADER compound", "prompts": 40, "samples_per_prompt": 4},
    "pairs": {"count": 60, "accuracy": 0.71, "chosen_forward_kl": 1.2, "intervals": {"accuracy": [0.6, 0.8]}},
    "generations": {
        "base": {"reward_mean": 0.331, "reward_mean_interval": [0.3, 0.36], "forward_kl": 0.0, "distinct_2": 0.8},
        "trained": {"reward_mean": 0.567, "reward_mean_interval": [0.5, 0.6], "forward_kl": 3.1, "distinct_2": None},
    },
    "difference": {"reward_mean": {"estimate": 0.236, "interval": [0.18, 0.3], "confidence": 0.95, "method": "…"}},
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stand-ins for training, evaluation and report that write what the real ones write."""
    calls: list[tuple[str, Any]] = []

    def install(name: str, **contents: Any) -> None:
        assert find_spec(f"tdpo.{name}"), f"tdpo.{name} does not exist: nothing would call its stand-in"
        module = types.ModuleType(f"tdpo.{name}")
        for key, value in contents.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, f"tdpo.{name}", module)

    def train(
        recipe: Any, run: Any, *, resume: bool, say: Any, progress: Any, cache_progress: Any, **_: Any
    ) -> dict[str, Any]:
        calls.append(("train", (recipe, resume)))
        cache_progress(1, 1, "reference cache")
        progress(1, 1, "loss 0.7")
        run.set_status("running", step=1, max_steps=1)
        (run.path / "model").mkdir(exist_ok=True)
        return {"steps": 1}

    def train_ppo(recipe: Any, run: Any, *, resume: bool, say: Any, progress: Any, **_: Any) -> dict[str, Any]:
        calls.append(("ppo", (recipe, resume)))
        progress(1, 1)
        run.set_status("running", step=4, max_steps=4)
        (run.path / "model").mkdir(exist_ok=True)
        return {"steps": 4}

    def evaluate_run(
        run: Any, recipe: Any, *, base_from: Any = None, judge: Any = None, progress: Any, **_: Any
    ) -> dict[str, Any]:
        calls.append(("evaluate", (run.path, recipe, base_from and base_from.path, *([judge] if judge else []))))
        progress("generations", 1, 1)
        run.write_json("evaluation.json", EVALUATION)
        return EVALUATION

    def write_report(runs: list[Path], out: Path, remark: str = "") -> Path:
        calls.append(("report", (runs, out, remark) if remark else (runs, out)))
        out.write_text("<html>", encoding="utf-8")
        return out

    install("workflows.train", train=train)
    install("workflows.ppo", train_ppo=train_ppo)
    install("evaluation", evaluate_run=evaluate_run)
    install("report", write_report=write_report, write_study_report=None, is_study=lambda folder: False)
    return calls


def test_pairs_samples_what_the_recipe_says(call: Call, recipe_file: Path, small_environment: Environment) -> None:
    done = call("pairs", str(recipe_file), "--out", "o.jsonl", "sampling.max_new_tokens=6", "seed=3")
    assert done.exit_code == 0, done.output
    assert "pairs from 24 responses to 6 prompts, mean reward" in done.output and "24 of 24" in done.output
    rows = [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["prompt_id"] for row in rows} <= {prompt.id for prompt in small_environment.train}
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    origin = read_json(Path("o.jsonl.meta.json"))["origin"]
    assert (origin["seed"], origin["max_new_tokens"], origin["num_samples"]) == (3, 6, 4)
    again = call("pairs", str(recipe_file), "--out", "o.jsonl")
    assert again.exit_code == 2 and "--overwrite replaces it" in again.output
    before = {path.name: path.read_bytes() for path in Path().glob("o.jsonl*")}
    for wrong in ("model.name=no-such-model", "sampling.samples_per_prompt=1"):
        assert call("pairs", str(recipe_file), wrong, "--out", "o.jsonl", "--overwrite").exit_code == 2
        assert {path.name: path.read_bytes() for path in Path().glob("o.jsonl*")} == before


def test_pairs_of_held_out_prompts_go_where_the_recipe_reads_them(
    call: Call, recipe_file: Path, small_environment: Environment
) -> None:
    done = call("pairs", str(recipe_file), "--split", "held_out", "data.eval=held.jsonl")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("held.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["prompt_id"] for row in rows} <= {prompt.id for prompt in small_environment.held_out}


def test_evaluate_prints_base_beside_trained(call: Call, recipe_file: Path, fakes: list[tuple[str, Any]]) -> None:
    assert call("train", str(recipe_file)).exit_code == 0
    done = call("evaluate", "run", "evaluation.samples_per_prompt=2")
    assert done.exit_code == 0, done.output
    assert "0.331" in done.output and "0.300…0.360" in done.output and "0.500…0.600" in done.output
    assert "mean reward +0.236 against base, 95% interval [+0.180, +0.300], which excludes 0" in done.output
    recipe = fakes[-1][1][1]
    assert recipe.evaluation.samples_per_prompt == 2
    assert "written: run/evaluation.json, run/samples.jsonl" in done.output
    assert call("evaluate", "run", "--reward", "judge.py:size").exit_code == 0
    assert fakes[-1][1][-1].function == "judge.py:size"
    assert call("evaluate", "run", "--reward-model", "some/model").exit_code == 0
    assert fakes[-1][1][-1].model == "some/model"
    for options in (["--reward", "a:b", "--reward-model", "c"], ["--reward", ""]):
        refused = call("evaluate", "run", *options)
        assert refused.exit_code == 2 and "--reward" in refused.output and "judge" in refused.output
    refused = call("evaluate", "run", "loss.beta=1")
    assert refused.exit_code == 2 and "it says how the run was trained" in refused.output


def test_the_table_of_two_methods_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from tdpo.cli._tables import comparison_table

    table = comparison_table({"TDPO2": EVALUATION, "DPO": EVALUATION}, extra={"training, seconds": {"DPO": "61"}})
    Console(width=80).print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [re.split(r"  +", line.strip()) for line in lines]
    assert ["reward, mean", "0.331", "0.567", "0.567"] in rows
    assert ["forward KL, nats", "0.00", "3.10", "3.10"] in rows
    assert ["pairs: accuracy", "0.710", "0.710"] in rows and ["training, seconds", "61"] in rows


def test_evaluate_before_training_says_what_to_do(call: Call, recipe_file: Path) -> None:
    RunDirectory("run").create(load_recipe(recipe_file))
    done = call("evaluate", "run")
    assert done.exit_code == 2 and "`tdpo train run --resume`" in done.output


def test_train_resume_reports_ignored_checkpoints(call: Call, recipe_file: Path, fakes: list[tuple[str, Any]]) -> None:
    fresh = call("train", str(recipe_file), "--resume")
    assert fresh.exit_code == 0 and "no run in run to resume: starting it" in fresh.output
    run = RunDirectory("run")
    run.set_status("interrupted", step=3)
    for step in (2, 3):
        (run.path / f"checkpoint-{step}").mkdir()
    mark_complete(run.path / "checkpoint-2")
    done = call("train", str(recipe_file), "--resume")
    assert done.exit_code == 0
    assert "checkpoint-3 is incomplete" in done.output and "resuming run from step 2" in done.output
    assert [resume for _, (_, resume) in fakes] == [False, True]


def test_a_finished_run_of_constant_learning_rate_can_be_lengthened(
    call: Call, recipe_file: Path, fakes: list[tuple[str, Any]]
) -> None:
    constant = "training.scheduler=constant"
    assert call("train", str(recipe_file), constant).exit_code == 0
    assert call("train", str(recipe_file), constant, "--resume").exit_code == 0
    assert len(fakes) == 1
    assert call("train", str(recipe_file), constant, "training.max_steps=6", "--resume").exit_code == 0
    assert len(fakes) == 2 and fakes[1][1][0].training.max_steps == 6


def test_report_goes_beside_the_first_run(call: Call, fakes: list[tuple[str, Any]], tmp_path: Path) -> None:
    Path("a").mkdir()
    assert call("report", "a", "b").exit_code == 0
    assert fakes == [("report", ([Path("a"), Path("b")], Path("a/report.html")))]


# demo


DEMO_STAGES = ["train", "train", "ppo", *["evaluate"] * 3, "report"]


@pytest.fixture
def tiny_demo(monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[[str], Path]) -> None:
    """The demo on a tiny model instead of the bundled one."""
    for name in ("SHORT", "QUICK"):
        size = getattr(demo_module, name)
        common = (*size.common, f"model.name={tiny_folder('llama')}")
        monkeypatch.setattr(demo_module, name, replace(size, common=common))


def test_demo_does_every_stage_once_and_skips_what_is_done(
    call: Call, fakes: list[tuple[str, Any]], tiny_demo: None, small_environment: Environment
) -> None:
    done = call("demo", "--quick", "--out", "demo")
    assert done.exit_code == 0, done.output
    assert [name for name, _ in fakes] == DEMO_STAGES
    trained = [recipe for name, (recipe, *_) in fakes if name == "train"]
    assert [recipe.loss.name for recipe in trained] == ["tdpo2", "dpo"]
    assert {recipe.data.train for recipe in trained} == {"demo/pairs.jsonl"}
    ppo = fakes[2][1][0]
    assert (ppo.run_dir, ppo.ppo.iterations, ppo.rollouts.completions) == ("demo/ppo", 2, 16)
    bases = [base for name, (*_, base) in fakes if name == "evaluate"]
    assert bases == [None, Path("demo/tdpo2"), Path("demo/tdpo2")], "the base model answers once"
    assert fakes[-1][1][0] == [Path(f"demo/{name}") for name in ("tdpo2", "dpo", "ppo")]
    for text in (
        "three times",
        "KL(reference‖policy)",
        "PPO scores 32 responses",
        "the ranks of 12 responses of the untrained model",
        "training, seconds",
        "Report: demo/report.html",
        "How to read",
    ):
        assert text in done.output
    [scored] = re.findall(r"responses scored +(\d+) +(\d+) +(\d+)", done.output)
    assert scored == ("12", "12", "32")
    before = Path("demo/pairs.jsonl").read_bytes()
    again = call("demo", "--quick", "--out", "demo")
    assert again.exit_code == 0 and again.output.count("done before") == 8
    assert [name for name, _ in fakes[len(DEMO_STAGES) :]] == ["report"], "which is written anew"
    assert "0.567" in again.output and Path("demo/pairs.jsonl").read_bytes() == before


def test_the_demos_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With four models, rewards below zero on both ends of an interval, and nothing cut off or broken."""
    from rich.console import Console

    from tdpo.cli._tables import GENERATION_ROWS, PAIR_ROWS, WITH_INTERVAL, comparison_table

    numbers: dict[str, Any] = {key: -0.3456 if key == "reward_mean" else 10.25 for _, key, _ in GENERATION_ROWS}
    limits = {f"{key}_interval": [9.875, 11.125] for key in WITH_INTERVAL} | {
        "reward_mean_interval": [-0.4123, -0.2834]
    }
    pairs = {key: 0.5 for _, key, _ in PAIR_ROWS} | {"intervals": {key: [0.25, 0.75] for key in WITH_INTERVAL}}
    trained = {**EVALUATION, "generations": {"base": numbers | limits, "trained": numbers | limits}, "pairs": pairs}
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        evaluations = {"TDPO2": trained, "DPO": trained, "PPO": {**trained, "pairs": None}}
        console.print(comparison_table(evaluations, extra={"training, seconds": {"PPO": "1024"}}))
    lines = captured.get().splitlines()
    rows = len(GENERATION_ROWS) + len(PAIR_ROWS) + len(WITH_INTERVAL) + 1
    assert len(lines) == 3 + rows, "no row was broken"
    assert max(map(len, lines)) <= 80
    assert lines[4].split() == ["95", "%", "interval", *["-0.412…-0.283"] * 4]


def test_demo_continues_after_an_interruption(
    call: Call,
    fakes: list[tuple[str, Any]],
    tiny_demo: None,
    small_environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["tdpo.workflows.train"], "train", interrupted)
        stopped = call("demo", "--quick")
    assert stopped.exit_code == 130 and "The same command continues in runs/demo-quick" in stopped.output
    goes_on = call("demo", "--quick")
    assert goes_on.exit_code == 0 and goes_on.output.count("done before") == 2
    assert [name for name, _ in fakes] == DEMO_STAGES


def test_demo_mixes_neither_settings_nor_folders(
    call: Call, fakes: list[tuple[str, Any]], tiny_demo: None, small_environment: Environment
) -> None:
    assert call("demo", "--quick", "--out", "demo").exit_code == 0
    mixed = call("demo", "--out", "demo")
    assert call("demo", "--full", "--quick").exit_code == 2
    assert mixed.exit_code == 2 and "holds a demo with other settings" in mixed.output
    foreign = call("demo", "--out", ".")
    assert foreign.exit_code == 2 and "is not empty and holds no demo" in foreign.output


def test_the_short_demo_says_how_little_it_is_and_keeps_its_dtype(
    call: Call,
    fakes: list[tuple[str, Any]],
    tiny_demo: None,
    small_environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tdpo.models import product_speed

    first = call("demo")
    assert first.exit_code == 0, first.output
    for text in ("runs in float32", "100 GFLOP/s in bfloat16, 200 in float32", "This is the short demo: 6 prompts",
                 "intervals are wide", "make demo-full", "Report: runs/demo/report.html"):  # fmt: skip
        assert text in first.output, text
    assert {recipe.model.dtype for name, (recipe, *_) in fakes if name in ("train", "ppo")} == {"float32"}
    assert "make demo-full" in fakes[-1][1][2], "the report says it too"
    # Another measurement would be another demo: the one that was made when it began counts.
    fast = product_speed.ProductSpeed("bfloat16", half=900.0, float32=200.0)
    monkeypatch.setattr(product_speed, "measure", lambda dtype, device: fast)
    again = call("demo")
    assert again.exit_code == 0 and again.output.count("done before") == 8, again.output
    assert "in float32, as it began" in again.output
    assert "runs in bfloat16" in call("demo", "--out", "elsewhere").output


def test_the_short_demo_gives_every_method_the_same_budget() -> None:
    from tdpo.cli._demo_sizes import SHORT
    from tdpo.cli.demo import Demo

    demo = Demo(Path("runs/demo"), SHORT)
    on_pairs = demo._recipes_on_pairs(list(SHORT.common))
    recipes = {**on_pairs, **demo._recipes_on_rewards(list(SHORT.common))}
    assert len(set(demo._responses_scored(on_pairs["TDPO2"], recipes).values())) == 1


@pytest.mark.slow
def test_the_real_demo_on_a_tiny_model(call: Call, tiny_demo: None, small_environment: Environment) -> None:
    done = call("demo", "--quick", "--out", "demo")
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output
    for label in ("tdpo2", "dpo", "ppo"):
        evaluation = read_json(Path(f"demo/{label}/evaluation.json"))
        assert evaluation["generations"]["trained"]["count"] == 3
        assert label == "ppo" or evaluation["pairs"]["count"] >= 1
    assert evaluation["pairs"] is None and evaluation["run"]["kl"]["direction"] == "reverse"
    metrics = [json.loads(line) for line in Path("demo/ppo/metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in metrics].count("train") == 2, "a line an iteration"
    text = Path("demo/report.html").read_text(encoding="utf-8")
    assert "What PPO said while training" in text and "KL coefficient" in text
    assert "This is demo --quick: 6 prompts" in text and "weights float32, adapters float32, products float32" in text
    assert Path("demo/report.html").stat().st_size > 10_000


def test_a_difference_without_an_interval_says_why() -> None:
    from tdpo.cli._tables import notes

    difference = {"reward_mean": {"estimate": 0.25, "interval": None, "confidence": 0.95}}
    said = notes({"DPO": {"settings": {"prompts": 3}, "pairs": {"prompts": 6}, "difference": difference}})
    assert said == [
        "DPO: 3 answered prompts; means over fewer than 6 have no interval",
        "DPO: mean reward +0.250 against base, without an interval: there are fewer than six prompts, or all have the "
        "same difference",
    ]
