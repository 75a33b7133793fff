"""Whole runs on a tiny model: killed while they begin or save, resumed with other inputs, damaged, stopped."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.run_cases import REWARD, go, ppo_recipe_in, recipe_in, write_inputs, write_rows
from helpers.tiny_models import build_model
from helpers.training_cases import lora, move_away, plain_rows
from tdpo.records.json_files import read_json
from tdpo.runs import ChangedInputs, DamagedCheckpoint, RunDirectory, RunError
from tdpo.workflows.precision_of_run import precision_of_run


@pytest.fixture
def inputs(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return write_inputs(tmp_path, tiny_folder("llama"))


def kill_myself(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def victim(folder: str, where: str, *overrides: str) -> None:
    """A run that is killed at one place."""
    torch.set_num_threads(1)
    from tdpo.runs import directory

    if where == "while it begins":
        directory.describe_machine = kill_myself  # type: ignore[assignment]  # after recipe.yaml
    elif where == "before its status":
        RunDirectory.set_status = kill_myself  # type: ignore[method-assign]
    elif where == "while the model is saved":
        from tdpo.training.offline.trainer import TDPOTrainer

        save = TDPOTrainer.save_model

        def saved(self: Any, output_dir: Any = None, _internal_call: bool = False) -> None:
            save(self, output_dir, _internal_call)
            if not _internal_call:
                kill_myself()

        TDPOTrainer.save_model = saved  # type: ignore[method-assign]
    go(recipe_in(Path(folder), *overrides), overwrite=True)


def killed(folder: Path, where: str, *overrides: str) -> None:
    """Forked, as that takes no time; the child trains on the CPU, on one thread, and never returns."""
    process = multiprocessing.get_context("fork").Process(target=victim, args=(str(folder), where, *overrides))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


# Killed


def test_a_model_whose_saving_was_cut_off_leaves_nothing_to_the_next(inputs: Path) -> None:
    killed(inputs, "while the model is saved")
    run = RunDirectory(inputs / "run")
    assert (run.path / ".model-being-saved" / "adapter_model.safetensors").exists() and run.state() == "killed"
    assert RunDirectory(inputs / "run").status()["state"] == "running", "nobody was there to write another"
    go(recipe_in(inputs, "model.lora=null"), overwrite=True)
    names = {path.name for path in (inputs / "run" / "model").iterdir()}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)
    assert not (inputs / "run" / ".model-being-saved").exists()


@pytest.mark.parametrize("where", ["while it begins", "before its status"])
def test_a_run_killed_while_it_began_can_be_begun_in_every_way(inputs: Path, where: str) -> None:
    recipe = recipe_in(inputs)
    for how in ({}, {"overwrite": True}):
        killed(inputs, where)
        run = RunDirectory(inputs / "run")
        assert (run.path / "recipe.yaml").exists() and not run.is_run(), "what `--resume` and studies ask"
        assert run.why_not_new() is None, "what `tdpo doctor` asks"
        with RunDirectory.training(recipe, **how) as begun:  # type: ignore[arg-type]
            assert begun.is_run()
        shutil.rmtree(run.path)


# Other inputs


@pytest.fixture
def stopped(inputs: Path) -> Path:
    go(recipe_in(inputs))
    return lengthened(inputs)


@pytest.fixture
def stopped_ppo(inputs: Path) -> Path:
    go(ppo_recipe_in(inputs))
    return lengthened(inputs)


def lengthened(folder: Path) -> Path:
    """As if it had not been finished."""
    shutil.rmtree(folder / "run" / "model")
    return folder


def other_weights(folder: Path) -> None:
    move_away(build_model("llama")).save_pretrained(folder)


def test_a_run_goes_on_with_the_same_inputs_only(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = recipe_in(stopped, "training.max_steps=5")
    run = stopped / "run"
    rows = plain_rows(6)
    before = {path.name: path.read_bytes() for path in run.glob("*.json*")}

    write_rows(stopped / "pairs.jsonl", [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows])
    other_weights(stopped / "base")
    named = r"(?s)checkpoint-4 was .*model\.name \(.*base\), weights: was \w+, is .*training pairs: .*--accept-changes"
    with monkeypatch.context() as patch:
        patch.delattr("tdpo.workflows.training_run.load_policy")  # it is told before the weights load
        with pytest.raises(ChangedInputs, match=named):
            go(longer, resume=True)
    after = {path.name: path.read_bytes() for path in run.glob("*.json*")}
    assert after["data.json"] == before["data.json"] and after["metrics.jsonl"] == before["metrics.jsonl"]

    said: list[str] = []
    go(longer, resume=True, accept_changes=True, say=said.append)
    assert any("Accepted, though checkpoint-4 was trained with another: training pairs" in line for line in said)
    accepted = read_json(run / "environment.json")["resumed"][-1]["accepted_changes"]
    assert any(name.startswith("model.name") for name in accepted) and "training pairs" in accepted
    go(recipe_in(stopped, "training.max_steps=6"), resume=True)  # as the newest checkpoint was made with


def test_another_tokenizer_and_another_reference_are_named(inputs: Path) -> None:
    shutil.copytree(inputs / "base", inputs / "reference")
    reference = f"model.reference={inputs / 'reference'}"
    go(recipe_in(inputs, reference))
    other_weights(inputs / "reference")
    template = inputs / "base" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ChangedInputs) as caught:
        go(recipe_in(inputs, reference, "training.max_steps=5"), resume=True)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 2
    assert "model.name" in lines[0] and "configuration and tokenizer" in lines[0]
    assert "model.reference" in lines[1] and "weights" in lines[1]


def test_an_adapter_to_start_from_is_an_input_with_its_base(inputs: Path) -> None:
    from tdpo.models.digests import model_digests

    go(recipe_in(inputs))
    adapter = inputs / "run" / "model"
    before = model_digests(adapter)
    assert before == model_digests(adapter) and before["weights"] != model_digests(inputs / "base")["weights"]
    other_weights(inputs / "base")
    assert model_digests(adapter)["weights"] != before["weights"]


def test_a_ppo_run_goes_on_with_its_prompts_and_reward_only(stopped_ppo: Path) -> None:
    longer = ppo_recipe_in(stopped_ppo, "ppo.iterations=3")
    write_rows(stopped_ppo / "prompts.jsonl", [{"prompt": f"say {n}"} for n in range(4)])
    (stopped_ppo / "mine.py").write_text(REWARD.replace("isalpha", "isupper"))
    named = r"(?s)environment\.reward, the file .*mine\.py: was .*training prompts: was"
    with pytest.raises(ChangedInputs, match=named):
        go(longer, resume=True)
    go(longer, resume=True, accept_changes=True)
    assert len(read_json(stopped_ppo / "run" / "environment.json")["resumed"][-1]["accepted_changes"]) == 2


def test_a_digest_samples_every_tensor_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from tdpo.models import digests

    monkeypatch.setattr(digests, "WHOLE_BELOW", 1024)
    (tmp_path / "config.json").write_text('{"transformers_version": "5"}')
    tensors = {name: torch.arange(1000.0) for name in ("a", "b", "c")}
    save_file(tensors, tmp_path / "model.safetensors")
    first = digests.model_digests(tmp_path)
    (tmp_path / "config.json").write_text('{"transformers_version": "6"}')
    assert digests.model_digests(tmp_path) == first
    for name in tensors:
        save_file({**tensors, name: tensors[name] * 1.001}, tmp_path / "model.safetensors")
        assert digests.model_digests(tmp_path)["weights"] != first["weights"], name


# Damage


def test_a_damaged_newest_checkpoint_is_passed_over_when_asked(stopped: Path) -> None:
    newest = stopped / "run" / "checkpoint-4"
    os.truncate(newest / "optimizer.pt", 100)
    longer = recipe_in(stopped, "training.max_steps=5")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint-4 is damaged: optimizer\.pt has 100 bytes.*checkpoint-2"):
        go(longer, resume=True)
    said: list[str] = []
    go(longer, resume=True, last_good=True, say=said.append)
    assert any("checkpoint-4 is damaged and passed over: optimizer.pt" in line for line in said)
    assert any("Continuing from" in line and "checkpoint-2" in line for line in said)
    for checkpoint in (stopped / "run").glob("checkpoint-*"):
        os.truncate(checkpoint / "scheduler.pt", 0)
    with pytest.raises(DamagedCheckpoint, match="No older checkpoint beside it is whole"):
        go(recipe_in(stopped, "training.max_steps=6"), resume=True, last_good=True)


# Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stays_what_it_was(number: signal.Signals) -> None:
    from tdpo.training.callbacks import GracefulStop

    class Terminated(KeyboardInterrupt):
        pass

    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        for times in (1, 2):
            stop = GracefulStop(lambda _: None)
            with pytest.raises(KeyboardInterrupt) as caught, stop.listening():
                for _ in range(times):
                    os.kill(os.getpid(), number)
                stop.raise_if_asked()
            assert (caught.type is Terminated) == (number == signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    GracefulStop(lambda _: None).raise_if_asked()


def test_a_study_that_gets_sigterm_ends_like_the_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from helpers.study_cases import write_study
    from tdpo.cli._errors import Terminated
    from tdpo.cli.app import app
    from tdpo.comparison.running import Outcome, Stopped

    for interrupt, code in ((Terminated(), 143), (KeyboardInterrupt(), 130)):

        def stop(*_: Any, interrupt: KeyboardInterrupt = interrupt, **__: Any) -> None:
            raise Stopped(Outcome(), interrupt)

        monkeypatch.setattr("tdpo.comparison.study.compare", stop)
        ended = CliRunner().invoke(app, ["compare", str(write_study(tmp_path))])
        assert ended.exit_code == code and "The same command goes on" in ended.output


def test_a_cell_of_a_study_whose_inputs_changed_is_begun_anew(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tdpo.comparison.cells import StudyFiles, reference_cell
    from tdpo.comparison.work import _Work

    go(recipe_in(inputs))
    write_rows(inputs / "pairs.jsonl", plain_rows(5))
    study: Any = None
    work = _Work(study, StudyFiles(inputs), reference_cell("task", 0), lambda *_: None)
    work._train(recipe_in(inputs, "training.max_steps=5"), RunDirectory(inputs / "run"))
    assert "training pairs: was 6 pairs" in (said := capsys.readouterr().out) and "begun anew" in said
    run = RunDirectory(inputs / "run")
    assert run.state() == "finished" and "resumed" not in run.read_json("environment.json")
    assert [line["step"] for line in run.metrics() if line["split"] == "train"] == [1, 2, 3, 4, 5]


def test_a_disk_that_takes_no_status_does_not_hide_the_error(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunDirectory, state: str, **_: Any) -> None:
        raise OSError(28, "No space left on device", "status.json")

    with pytest.raises(ZeroDivisionError), RunDirectory.training(recipe_in(inputs)) as run:
        monkeypatch.setattr(RunDirectory, "set_status", full)
        assert run.state() == RunDirectory(run.path).state() == "running"
        raise ZeroDivisionError
    assert run.status()["state"] == "running" and run.state() == "killed", "it holds no lock any more"
    with pytest.raises(RunError, match="no trained model yet"):
        _ = run.model_path


# Precision


def test_a_run_keeps_the_precision_that_it_chose(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights of a bfloat16 model: what was measured is recorded; resumption and evaluation go by it."""
    from peft import get_peft_model

    from tdpo.evaluation import evaluate_run
    from tdpo.models import product_speed

    def measured(half: float) -> None:
        speed = product_speed.ProductSpeed("bfloat16", half, 100.0)
        monkeypatch.setattr(product_speed, "measure", lambda dtype, device: speed)

    build_model("llama", dtype=torch.bfloat16).save_pretrained(inputs / "base")
    write_rows(inputs / "held.jsonl", plain_rows(3, seed=1))
    full = ("model.lora=null", "model.dtype=auto", f"data.eval={inputs / 'held.jsonl'}")
    measured(half=400.0)
    said: list[str] = []
    run = go(recipe_in(inputs, *full, "training.max_steps=2"), say=said.append)
    assert any("Precision: weights float32, products bfloat16 (bfloat16 products are clearly" in line for line in said)
    recorded = run.precision()
    assert recorded is not None and (recorded["choice"], recorded["load_as"]) == ("bfloat16-mixed", "float32")
    measured(half=50.0)
    said.clear()
    go(recipe_in(inputs, *full), resume=True, say=said.append)
    assert any("Precision: weights float32, products bfloat16 (as the run began)" in line for line in said)
    assert run.precision() == recorded
    pairs = evaluate_run(run, recipe_in(inputs, *full))["pairs"]
    assert pairs["chosen_forward_kl"] > 0 and (inputs / "run/model/model.safetensors").exists()

    # A run of an earlier version recorded nothing: it trained the weights as they were loaded, and goes on so.
    machine = read_json(run.path / "environment.json")
    del machine["precision"]
    run.write_json("environment.json", machine)
    model, has_adapter = build_model("llama", dtype=torch.bfloat16), get_peft_model(build_model("llama"), lora())
    assert precision_of_run(run, "auto", model, is_resumed=True) == "bfloat16"
    assert precision_of_run(run, "auto", model, is_resumed=False) == "auto"
    assert precision_of_run(run, "auto", has_adapter, is_resumed=True) == "auto"
