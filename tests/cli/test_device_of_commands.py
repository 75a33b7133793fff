"""Every command that runs a model says where in one line, and hands the device that was chosen on to all its models."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from helpers.study_cases import read, write_study
from helpers.training_cases import plain_rows
from tdpo.comparison import cell_judging, work
from tdpo.comparison.cells import StudyFiles, cells_of, reference_cell, training_recipe
from tdpo.embeddings import SentenceEmbedder
from tdpo.environments import Environment, Prompt
from tdpo.evaluation.judge import Judge
from tdpo.models import devices
from tdpo.rewards.functions import RewardModel
from tdpo.workflows import prerequisites

Call = Callable[..., Result]
CHOICE = "cuda:7"
PLACE = torch.device("cpu", 0)  # the CPU, but nobody's default


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The choices for which a device was asked, which are all there, and with which models were loaded."""
    choices: list[str | None] = []
    assert prerequisites.device_of is work.device_of is cell_judging.device_of is devices.device_of

    def record(choice: str = "auto") -> torch.device:
        choices.append(choice)
        return PLACE

    given = devices.device_of
    for name, module in list(sys.modules.items()):
        if name.startswith("tdpo.") and getattr(module, "device_of", None) is given:
            monkeypatch.setattr(module, "device_of", record)

    def place(model: Any, choice: str | None) -> Any:
        choices.append(choice)
        return devices.placed(model, choice)

    monkeypatch.setattr("tdpo.models.model_loading.placed", place)
    return choices


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.device]]:
    """The devices that reward models, judges and embedders were loaded on."""
    places: dict[str, list[torch.device]] = {"reward": [], "judge": [], "embedder": []}
    make, load = RewardModel.__init__, Judge.load.__func__  # type: ignore[attr-defined]

    def make_reward(self: Any, *arguments: Any, device: Any = "cpu", **more: Any) -> None:
        places["reward"].append(device)
        make(self, *arguments, device=device, **more)

    def load_judge(cls: Any, entry: Any, tokenizer: Any, device: Any, **more: Any) -> Judge:
        places["judge"].append(device)
        judge: Judge = load(cls, entry, tokenizer, device, **more)
        return judge

    def load_embedder(name: str, *, device: Any = None, **_: Any) -> SentenceEmbedder:
        import numpy

        places["embedder"].append(torch.device(device))
        model = type("Letters", (), {"encode": lambda self, texts, **_: numpy.ones((len(texts), 2))})
        return SentenceEmbedder(model(), name)

    monkeypatch.setattr(RewardModel, "__init__", make_reward)
    monkeypatch.setattr(Judge, "load", classmethod(load_judge))
    monkeypatch.setattr(SentenceEmbedder, "load", load_embedder)
    return places


def letters(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [sum(map(str.isalpha, text)) / 10 for text in completions]


@pytest.fixture
def recipe_file(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe of one update, on rows or on the answers to three prompts."""
    prompts = [Prompt(f"p{i}", f"the cat {i}") for i in range(3)]
    made = Environment("sentiment", prompts[:2], prompts[2:], letters, "letters", 4, "a test")
    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: made)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_rows(4)), encoding="utf-8")
    Path("recipe.yaml").write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}', device: '{CHOICE}', lora: {{rank: 2}}}}\n"
        "data: {train: rows.jsonl}\ntraining: {batch_size: 4, max_steps: 1, reference: model, learning_rate: 1.0e-2}\n"
        "environment: {name: sentiment}\nsampling: {samples_per_prompt: 2, pairs_per_prompt: 1}\n"
        "evaluation: {max_prompts: 1, samples_per_prompt: 2}\n",
        encoding="utf-8",
    )
    return "recipe.yaml"


@pytest.fixture
def reward_model() -> str:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from helpers.tiny_models import build_tokenizer

    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained("judge")
    build_tokenizer().save_pretrained("judge")
    return str(Path("judge").resolve())


def lines_about_the_device(done: Result) -> list[str]:
    assert done.exit_code == 0, done.output
    return re.findall(r"^\w.* on (?:the CPU|cuda:\d+ \(.*\))\.?$", done.output, re.M)


def test_pairs_and_generate(call: Call, recipe_file: str, asked: list[str | None], tiny_folder: Any) -> None:
    sampled = call("pairs", recipe_file, "--out", "o.jsonl")
    assert lines_about_the_device(sampled) == ["sampling on the CPU"] and set(asked) == {CHOICE}
    generated = call("generate", str(tiny_folder("llama")), "-p", "a", "--max-new-tokens", "2", "--device", CHOICE)
    assert lines_about_the_device(generated) == ["generating on the CPU"]
    assert set(asked) == {CHOICE}


def test_train_evaluate_and_scale(
    call: Call, recipe_file: str, asked: list[str | None], handed_on: dict[str, list[torch.device]], reward_model: str
) -> None:
    [line] = lines_about_the_device(call("train", recipe_file))
    assert line.startswith("Training on "), "of the trainer, which is where its arguments say"
    assert set(asked) == {CHOICE}
    asked.clear()
    judged = call("evaluate", "run", "--reward-model", reward_model)
    assert lines_about_the_device(judged) == ["judging on the CPU"]
    assert handed_on == {"judge": [PLACE], "reward": [PLACE], "embedder": []}
    assert lines_about_the_device(call("scale", "run", "scaled", "--kl", "0.01")) == ["measuring on the CPU"]
    assert set(asked) == {CHOICE}
    # A run that was made with another machine's device is judged where the user says.
    asked.clear()
    for command in (["evaluate", "run"], ["scale", "run", "again", "--kl", "0.01"]):
        assert call(*command, "model.device=cuda:3").exit_code == 0
    scaled = call("evaluate", "scaled", "--data", "rows.jsonl", "--out", "judged", "model.device=cuda:3")
    assert scaled.exit_code == 0, scaled.output
    assert set(asked) == {"cuda:3"}


def test_rewards_of_ppo_and_of_doctor(
    call: Call, recipe_file: str, asked: list[str | None], handed_on: dict[str, list[torch.device]], reward_model: str
) -> None:
    Path("p.txt").write_text("the cat\na dog\n", encoding="utf-8")
    model = Path(recipe_file).read_text(encoding="utf-8").splitlines()[:2]
    Path("ppo.yaml").write_text(
        "\n".join(model) + f"\nprompts: {{train: p.txt}}\nrewards: [{{model: '{reward_model}'}}]\n"
        "rollouts: {completions: 4, samples_per_prompt: 2, max_new_tokens: 4}\n"
        "ppo: {iterations: 1, epochs: 1, minibatch_size: 4}\n",
        encoding="utf-8",
    )
    checked = call("doctor", "ppo.yaml")
    assert f"device  model.device {CHOICE}: models run on the CPU\n" in checked.output and checked.exit_code == 0
    [line] = lines_about_the_device(call("ppo", "ppo.yaml"))
    assert line.startswith("Training on ")
    # doctor also measures the machine itself, whatever the recipe says
    assert handed_on["reward"] == [PLACE, PLACE] and [each for each in asked if each != CHOICE] == ["auto"]


def test_cells_of_a_study(
    tmp_path: Path,
    asked: list[str | None],
    handed_on: dict[str, list[torch.device]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = read(write_study(tmp_path / "study", embeddings="minilm"), f"model.device={CHOICE}")
    files, task = StudyFiles.of(study), study.tasks[0].label
    work.do_cell(study, files, reference_cell(task, 0), lambda *_: None)
    assert capsys.readouterr().out == "Models run on the CPU.\n"
    assert handed_on["embedder"] == [PLACE] and set(asked) == {CHOICE}
    trained = [cell for cell in cells_of(study) if cell.arm in ("tdpo2", "ppo_reverse", "online_dpo_reverse")]
    assert {training_recipe(study, files, cell).model.device for cell in trained} == {CHOICE}
