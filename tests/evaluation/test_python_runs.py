"""What trainers in Python leave behind: the record and the model card, with which `evaluate` and `report` do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.ppo_cases import PROMPTS, letters, make_ppo
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import StopAt, lora, make_trainer, plain_rows
from tdpo.cli.app import app
from tdpo.config import Recipe
from tdpo.evaluation import evaluate_run
from tdpo.evaluation.folders import Asked, evaluation_of
from tdpo.models.digests import model_digests
from tdpo.records.json_files import read_json
from tdpo.report import write_report
from tdpo.report.run import Run
from tdpo.report.run_reading import load_runs
from tdpo.runs import RunDirectory, RunError
from tdpo.runs.trained_folders import trained_folder

ROOT = Path(__file__).parents[2]
HELD_OUT = plain_rows(5, seed=7)
SHOWN = ("accuracy", "margin", "chosen_logp", "chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl")


@dataclass
class Made:
    """Folders that trainers left, and what each trainer itself said of the held-out rows."""

    base: Path
    adapter: Path  # trained on two updates, a checkpoint after each
    further: Path  # the same adapter, trained on
    whole: Path  # all weights, of a model in memory, saved elsewhere
    saved: Path  # where it was saved
    data: Path
    numbers: dict[str, Mapping[str, float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("python-runs")
    base, adapter, further, whole, saved = (
        root / name for name in ("base", "adapter", "further", "whole", "elsewhere")
    )
    tokenizer = build_tokenizer()
    build_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = root / "held_out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    numbers = {}
    steps: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    for name, model, folder, more in (
        ("adapter", str(base), adapter, {"peft_config": lora(), **steps}),
        ("further", str(adapter / "model"), further, {}),
        ("whole", build_model("llama"), whole, {"loss": "dpo", "beta": 0.3}),
    ):
        trainer = make_trainer(model, folder, tokenizer, **more)
        trainer.train()
        trainer.save_model(saved if name == "whole" else folder / "model")
        numbers[name] = trainer.evaluate(HELD_OUT)
    return Made(base, adapter, further, whole, saved, data, numbers)


@pytest.fixture
def adapter(made: Made, tmp_path: Path) -> Path:
    """The adapter's run, moved: a test may write into it."""
    return Path(shutil.copytree(made.adapter, tmp_path / "moved"))


def judged(folder: Path, made: Made, **asked: Any) -> dict[str, Any]:
    found = evaluation_of(trained_folder(folder), Asked(**{"data": str(made.data), **asked}))
    found.run.path.mkdir(exist_ok=True)
    return evaluate_run(found.run, found.recipe, trained=found.trained)


def agrees(pairs: Mapping[str, Any], numbers: Mapping[str, float]) -> bool:
    return pairs["count"] == len(HELD_OUT) and all(
        pairs[name] == pytest.approx(numbers[f"eval_{name}"], rel=1e-4, abs=1e-5) for name in SHOWN
    )


def test_a_trainer_records_its_method_reference_data_and_end(made: Made) -> None:
    record = read_json(made.adapter / "trainer.json")
    settings = record["settings"]
    assert (record["trainer"], record["method"], record["model"]) == ("TDPOTrainer", "tdpo2", "model")
    strengths = {"beta": 0.1, "alpha": 0.5, "gamma": None, "label_smoothing": 0.0}
    assert settings["loss"] == {"name": "tdpo2", **strengths, "kl": None}
    assert settings["model"]["name"] == str(made.base.resolve()) and settings["model"]["lora"]["rank"] == 4
    assert (settings["training"]["batch_size"], settings["training"]["max_steps"]) == (4, 2)
    assert record["reference"] == {"kind": "adapter-off", "name": str(made.base.resolve())}
    assert record["inputs"]["training pairs"].startswith("8 pairs")
    status = read_json(made.adapter / "status.json")
    assert (status["state"], status["step"], status["max_steps"]) == ("finished", 2, 2)
    assert read_json(made.adapter / "data.json")["train"]["source"] == "a list in memory"
    assert read_json(made.adapter / "environment.json")["versions"]["torch"]
    whole = read_json(made.whole / "trainer.json")
    assert (whole["model"], whole["settings"]["loss"]["alpha"]) == (str(made.saved.resolve()), None)
    further = read_json(made.further / "trainer.json")["reference"]
    assert further == {"kind": "start", "name": str((made.adapter / "model").resolve())}


def test_the_card_says_data_method_reference_paper_and_versions(made: Made, tmp_path: Path) -> None:
    card = (made.adapter / "model" / "README.md").read_text()
    for part in (
        "library_name: peft", "Token-level Direct Preference Optimization, arXiv 2404.11999", "beta 0.1, alpha 0.5",
        "- reference: the policy before training", "LoRA of rank 4", "8 pairs from a list in memory", "- torch ",
        "2 updates of 4 pairs",
    ):  # fmt: skip
        assert part in card, part
    assert "all weights" in (made.saved / "README.md").read_text()


def test_a_readme_of_ones_own_stays_and_a_recipes_trainer_records_nothing(tmp_path: Path, tokenizer: Any) -> None:
    trainer = make_trainer(build_model("llama"), tmp_path / "run", tokenizer)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("# My project\n")
    trainer.save_model(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == "# My project\n"
    assert (tmp_path / "own" / "trainer.json").exists()
    trainer.end_record()
    trainer.save_model(tmp_path / "recipe")
    trainer.train()
    assert not {"README.md", "trainer.json"} & {path.name for path in (tmp_path / "recipe").iterdir()}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl"]


def failing() -> None:
    raise ZeroDivisionError("a callback's")


@pytest.mark.parametrize(("how", "state"), [(None, "interrupted"), (failing, "failed")])
def test_how_a_training_ended_is_recorded(how: Any, state: str, tmp_path: Path, tokenizer: Any) -> None:
    stop = StopAt(1) if how is None else StopAt(1, how)
    trainer = make_trainer(build_model("llama"), tmp_path, tokenizer, callbacks=[stop])
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        trainer.train()
    assert read_json(tmp_path / "status.json")["state"] == state
    with RunDirectory(tmp_path).locked(), pytest.raises(RunError, match="in use"):
        trainer.train()


@pytest.mark.parametrize("name", ["adapter", "further", "whole"])
def test_an_evaluation_finds_what_the_trainer_found(name: str, made: Made) -> None:
    """With an adapter that was trained further, the reference is where it began, and not its base."""
    asked = {"base": str(made.base)} if name == "whole" else {}
    found = judged(getattr(made, name), made, **asked)
    assert agrees(found["pairs"], made.numbers[name])
    assert found["run"]["loss"] == ("dpo" if name == "whole" else "tdpo2")
    assert read_json(getattr(made, name) / "evaluation.json") == found
    if name == "further":
        other = judged(made.further, made, reference=str(made.base))
        assert not agrees(other["pairs"], made.numbers[name])


def test_a_recipe_that_trains_an_adapter_further_is_judged_against_its_start(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.further / "model", tmp_path / "model")
    model = {"name": str(made.adapter / "model"), "dtype": "float32", "lora": None}
    data = {"train": "not read", "eval": str(made.data)}
    recipe = Recipe.model_validate({"run_dir": str(tmp_path), "model": model, "data": data})
    assert agrees(evaluate_run(RunDirectory(tmp_path), recipe)["pairs"], made.numbers["further"])


def test_a_checkpoint_is_judged_beside_its_run(adapter: Path, made: Made) -> None:
    last = judged(adapter / "model", made)
    before = model_digests(adapter / "checkpoint-1")
    first, second = (judged(adapter / f"checkpoint-{step}", made) for step in (1, 2))
    assert agrees(second["pairs"], made.numbers["adapter"])
    assert abs(first["pairs"]["margin"]) < abs(second["pairs"]["margin"])
    assert read_json(adapter / "evaluation.json") == last  # of the run, whose model that is
    assert read_json(adapter / "checkpoint-1" / "evaluation" / "evaluation.json") == first
    assert model_digests(adapter / "checkpoint-1") == before
    run, checkpoint = reported(adapter), reported(adapter / "checkpoint-1")
    assert run.evaluation == last and checkpoint.evaluation == first
    assert checkpoint.metrics == run.metrics and len(run.metrics) > 2
    assert any("checkpoint-1 of the run in" in note for note in checkpoint.notes)


def reported(folder: Path) -> Run:
    return load_runs([folder])[0]


def test_a_run_without_an_evaluation_is_reported_with_the_command_that_makes_one(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.adapter, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert f"tdpo evaluate {tmp_path / 'run'} --data FILE" in page
    assert "trainer.json</summary>" in page and "TDPO2, β = 0.10, α = 0.50" in page


def test_folders_of_other_libraries(made: Made, tmp_path: Path) -> None:
    """TRL's trainers leave plain adapters and models, and in checkpoints the log that transformers keeps."""
    trl = tmp_path / "trl"
    for step in (9, 10):
        shutil.copytree(
            made.adapter / "model", trl / f"checkpoint-{step}", ignore=shutil.ignore_patterns("trainer.json")
        )
    logs = [
        {"step": 1, "loss": 0.7, "rewards/margins": 0.1},
        {"step": 1, "eval_loss": 0.6, "eval_rewards/margins": 0.2},
    ]
    (trl / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
    with pytest.raises(FileNotFoundError, match=r"judge it first: `tdpo evaluate \S+checkpoint-9 --data FILE`"):
        load_runs([trl / "checkpoint-9"])
    found = evaluation_of(trained_folder(trl), Asked(data=str(made.data), overrides=["loss.beta=0.3"]))
    assert found.run.path == trl / "checkpoint-10" / "evaluation"
    assert any("DPO with β 0.3" in remark for remark in found.remarks)
    pairs = judged(trl, made, overrides=["loss.name=tdpo2"])["pairs"]
    assert agrees(pairs, made.numbers["adapter"]) and pairs["held_out"] is None
    run = reported(trl)
    assert run.series("train", "margin") == [(1.0, 0.1)] and run.series("eval", "margin") == [(1.0, 0.2)]
    assert run.evaluation["pairs"] == pairs and any("accuracy and margin are those of TDPO2" in n for n in run.notes)


def expected_errors(made: Made) -> Iterator[tuple[Path, dict[str, Any], str]]:
    yield made.adapter, {"data": None}, "give --data FILE, .* or --environment NAME"
    yield made.whole, {}, "what it was before training is not known: give --base NAME"
    yield made.base, {}, "give --base NAME"
    yield made.saved, {"base": "x", "reference": "y"}, "--base x has no effect beside --reference"
    yield made.adapter, {"overrides": ["loss.beta=1"]}, r"'loss\.beta=1' cannot be overridden"
    yield made.adapter, {"overrides": ["model.name=x"]}, "give --base x instead"
    yield made.adapter, {"overrides": [f"data.eval={made.data}"]}, "says again what a flag says"
    yield made.base.parent, {}, "is no run directory and holds no model: .* runs inside it: .*adapter"


def test_what_cannot_be_known_is_asked_for_by_its_flag(made: Made, adapter: Path) -> None:
    for folder, asked, message in expected_errors(made):
        with pytest.raises(ValueError, match=message):
            judged(folder, made, **asked)
    change(adapter, "reference", {"kind": "start", "name": None})
    with pytest.raises(ValueError, match="give its folder as --reference"):
        judged(adapter, made)
    change(adapter, "reference", {"kind": "adapter-off", "name": "/gone"})
    with pytest.raises(FileNotFoundError, match="not there any more: give --base FOLDER"):
        judged(adapter, made)
    assert agrees(judged(adapter, made, base=str(made.base))["pairs"], made.numbers["adapter"])


def change(folder: Path, key: str, value: Any) -> None:
    record = read_json(folder / "trainer.json")
    (folder / "trainer.json").write_text(json.dumps({**record, key: value}))


def test_a_record_cannot_have_code_run(adapter: Path, made: Made) -> None:
    """Whoever made a folder does not decide what runs on the machine of who evaluates it."""
    settings = read_json(adapter / "trainer.json")["settings"]
    change(adapter, "settings", {**settings, "model": {**settings["model"], "trust_remote_code": True}})
    recipe = evaluation_of(trained_folder(adapter), Asked(data=str(made.data))).recipe
    assert not recipe.model.trust_remote_code


def test_a_ppo_trainers_folder(made: Made, tmp_path: Path) -> None:
    trainer = make_ppo(
        str(made.base), tmp_path / "ppo", build_tokenizer(), letters, PROMPTS, peft_config=lora(), iterations=1
    )
    trainer.train()
    trainer.save_model(tmp_path / "ppo" / "model")
    card = (tmp_path / "ppo" / "model" / "README.md").read_text()
    assert "KL constraint: " in card and "prompts of a list in memory" in card
    asked = Asked(environment="brevity", overrides=["evaluation.max_prompts=1", "evaluation.max_new_tokens=3"])
    found = evaluation_of(trained_folder(tmp_path / "ppo"), asked)
    numbers = evaluate_run(found.run, found.recipe, trained=found.trained)
    assert (
        numbers["run"]["loss"] == "ppo"
        and numbers["run"]["kl"] == read_json(tmp_path / "ppo" / "trainer.json")["settings"]["kl"]
    )
    assert numbers["pairs"] is None and numbers["generations"]["trained"]["count"] == 4
    run = reported(tmp_path / "ppo")
    assert run.is_ppo and run.series("train", "reward_mean")


def test_the_commands_of_the_page_work(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(made.adapter, "runs/example_tdpo", ignore=shutil.ignore_patterns("evaluation*"))
    plain = shutil.ignore_patterns("trainer.json")
    shutil.copytree(made.adapter / "model", "trl_output/checkpoint-2", ignore=plain)
    for source, name in ((made.saved, "my_model"), (made.base, "my_base"), (made.data, "held_out.jsonl")):
        (shutil.copy if source.is_file() else shutil.copytree)(source, name)
    Path("my_model/trainer.json").unlink()
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/python_runs.md").read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 10
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:], prog_name="tdpo")
        assert done.exit_code == 0, f"{command}\n{done.output}"
    assert (
        Path("runs/example_tdpo/report.html").exists()
        and Path("trl_output/checkpoint-2/evaluation/report.html").exists()
    )
    refused = CliRunner().invoke(app, ["evaluate", "my_model", "--data", ""], prog_name="tdpo")
    assert refused.exit_code == 2 and "--data is empty" in refused.output
