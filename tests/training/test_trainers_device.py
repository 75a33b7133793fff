"""Trainers of the tests compute on the GPU where there is one: what is said of them is said of what runs there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.devices import device
from helpers.ppo_cases import PROMPTS, letters, make_online, make_ppo
from helpers.tiny_models import build_model, build_tokenizer, model_here
from helpers.training_cases import lora, make_trainer
from tdpo.models.devices import describe_device

TRAINERS: dict[str, Callable[[Path], Any]] = {
    "pairs": lambda folder: make_trainer(build_model("llama"), folder, build_tokenizer()),
    "pairs, cached": lambda folder: make_trainer(
        build_model("llama"), folder, build_tokenizer(), peft_config=lora("q_proj"), reference="cache"
    ),
    "PPO": lambda folder: make_ppo(build_model("llama"), folder, build_tokenizer(), letters, PROMPTS),
    "own pairs": lambda folder: make_online(folder),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_has_the_device_says_so_and_its_policy_is_there(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tdpo"):
        trainer = TRAINERS[name](tmp_path)
    said = [line for line in caplog.messages if line.startswith("Training on ")]
    assert said == [f"Training on {describe_device(trainer.args.device)}."]
    assert trainer.args.device.type == device()
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {device()}


def test_what_is_sampled_from_is_there() -> None:
    assert model_here("llama").device.type == device()
