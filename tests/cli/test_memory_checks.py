"""The estimate of memory: its parts follow from recipe and model, and `tdpo doctor` says whether it fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helpers.tiny_models import build_model
from tdpo.config import load_recipe
from tdpo.workflows.memory_batches import LearnedBatch
from tdpo.workflows.memory_room import MemoryRoom, ModelsOfRun, memory_of

BATCH = LearnedBatch(rows=4, tokens=24, counted=32, sequence=16, response=8)
NUMBERS = sum(p.numel() for p in build_model("llama").parameters())


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    rows = [{"prompt": "the cat", "chosen": f"a dog {i}", "rejected": "a mat"} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}', lora: null}}\ndata: {{train: rows.jsonl}}\n"
    )
    return path


def room(recipe_file: Path, *overrides: str, devices: int = 1) -> MemoryRoom:
    recipe = load_recipe(recipe_file, overrides)
    models = ModelsOfRun.of(recipe)
    assert models is not None
    return memory_of(recipe, models, BATCH, devices)


def test_parts_of_a_training_of_all_weights(recipe_file: Path) -> None:
    plain = room(recipe_file)
    assert plain.weights == plain.gradients == 4 * NUMBERS and plain.optimizer == 8 * NUMBERS
    assert plain.activations is not None and plain.cache == plain.collecting == 0
    assert plain.peak == plain.weights + plain.gradients + plain.optimizer + plain.activations + plain.head
    assert room(recipe_file, "training.reference=model").weights == 8 * NUMBERS, "a copy of the start runs beside it"
    assert room(recipe_file, "training.optimizer=sgd").optimizer == 0
    less = room(recipe_file, "training.gradient_checkpointing=true").activations
    assert less is not None and less < 0.75 * plain.activations
    mixed = room(recipe_file, "training.precision=bfloat16-mixed")
    assert mixed.weights == 6 * NUMBERS and mixed.activations is not None and mixed.activations < plain.activations


def test_what_a_server_draws_takes_no_memory_here(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}', lora: {{rank: 4}}}}\n"
        "environment: {name: sentiment}\nppo: {advantage: rloo}\n"
    )
    here = room(path)
    server = room(path, "sampling.engine=vllm", "sampling.url=http://127.0.0.1:8000")
    kept = 64 * BATCH.response * 32 * 4  # hidden states [64 responses, 8 tokens, 32] of a rollout in float32
    assert server.cache == kept < here.cache and server.collecting == 0 < here.collecting


def test_shared_weights_and_adapters(recipe_file: Path) -> None:
    shared = room(recipe_file, devices=4)
    assert shared.optimizer == 2 * NUMBERS and shared.gradients == NUMBERS
    assert shared.weights > NUMBERS, "a shard, and what is whole at a time"
    adapter = room(recipe_file, "model.lora={rank: 4}")
    assert adapter.gradients < NUMBERS / 2 and adapter.optimizer == 2 * adapter.gradients


def test_the_peak_is_the_largest_moment() -> None:
    parts: dict[str, Any] = {"weights": 100, "gradients": 10, "optimizer": 20, "activations": 50, "head": 5}
    assert MemoryRoom(**parts).peak == 185
    assert MemoryRoom(**{**parts, "activations": None, "head": 0}).peak == 140, "a step beside the gradients"
    assert MemoryRoom(**parts, cache=60, collecting=40).peak == 220
    assert "activations unknown without values" in MemoryRoom(**{**parts, "activations": None}).in_words()


def test_doctor_says_whether_it_fits(
    call: Callable[..., Result], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("doctor", str(recipe_file), "--devices", "2")
    assert done.exit_code == 0, done.output
    assert "at the peak (weights" in done.output and "it fits: " in done.output
    assert "on each of 2 devices that share the weights, with 8 rows of up to" in done.output
    monkeypatch.setattr("tdpo.cli._memory_checks._device", lambda: ("the card", 1000))
    done = call("doctor", str(recipe_file))
    assert done.exit_code == 1 and "1 problem: memory" in done.output
    assert "it does not fit: the card has " in done.output and "a smaller micro_batch_size gives" in done.output
    assert call("doctor", "--devices", "2").exit_code == 2
