"""The estimate of memory: its parts follow from recipe and model, and `tdpo doctor` says whether it fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers.tiny_models import build_model
from tdpo.cli._memory_checks import _device, _memory
from tdpo.config import load_recipe
from tdpo.workflows.memory_batches import LearnedBatch
from tdpo.workflows.memory_room import MemoryRoom, memory_of
from tdpo.workflows.models_of_run import ModelsOfRun

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


def test_an_adapter_on_a_gpu_is_rounded_for_its_products(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("model.lora.rank=4", "model.dtype=bfloat16")
    on_cpu = room(recipe_file, *overrides)
    monkeypatch.setattr("tdpo.workflows.memory_room.device_of", lambda choice: torch.device("cuda"))
    on_gpu = room(recipe_file, *overrides)
    adapters = on_cpu.gradients // 4
    assert on_gpu.weights == on_cpu.weights + 2 * adapters and on_gpu.gradients == on_cpu.gradients
    assert on_gpu.activations is not None and on_cpu.activations is not None
    assert on_gpu.activations < 0.9 * on_cpu.activations, "no input is raised to float32"


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


def test_a_quantised_base_takes_its_bits(recipe_file: Path, tmp_path: Path) -> None:
    """Not those of the weights before: QLoRA is for what does not fit otherwise."""
    lora = "model.lora={rank: 4}"
    model = build_model("llama")
    layers = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_head]
    plain = room(recipe_file, lora).weights
    for settings, bits in (("{bits: 4}", 4.126953125), ("{bits: 4, nested: false}", 4.5), ("{bits: 8}", 8)):
        packed = room(recipe_file, lora, f"model.quantization={settings}").weights
        assert packed == plain - 4 * sum(layers) + int(bits / 8 * sum(layers)) + 4 * max(layers), settings
    quantised = load_recipe(recipe_file, [lora, "model.quantization={bits: 4}"])
    assert [check.state for check in _memory(quantised, BATCH, 1)] == ["ok"]
    [refused] = _memory(quantised, BATCH, 2)
    assert refused.state == "problem" and "each device holds it whole" in refused.text
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = load_recipe(recipe_file).model.name
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    note = {"settings": {"quant_method": "bitsandbytes", "load_in_8bit": True}, "dtype": "float32"}
    (adapter / "base_quantization.json").write_text(json.dumps(note))
    goes_on = room(recipe_file, f"model.name={adapter}")
    assert goes_on.weights == packed and 0 < goes_on.gradients < NUMBERS, "as it was trained, and it trains on"


def ppo_room(tmp_path: Path, folder: Path, devices: int = 1, **ppo: Any) -> MemoryRoom:
    recipe = load_recipe(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {"name": str(folder), "lora": None},
            "prompts": {"train": "prompts.jsonl"},
            "rewards": [{"function": "mine.py:reward"}],
            "rollouts": {"completions": 64, "max_new_tokens": 8, "batch_size": 64},
            "ppo": {"minibatch_size": 8, **ppo},
        }
    )
    models = ModelsOfRun.of(recipe)
    assert models is not None
    return memory_of(recipe, models, BATCH, devices)


def test_a_critic_of_its_own_keeps_activations_too(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Policy and critic pass a micro-batch one after the other, and then comes the backward of both."""
    folder = tiny_folder("llama")
    alone, beside = ppo_room(tmp_path, folder), ppo_room(tmp_path, folder, value_model=str(folder))
    assert alone.activations and beside.activations == 2 * alone.activations
    mixed = ppo_room(tmp_path, folder, precision="bfloat16-mixed", value_model=str(folder))
    without = ppo_room(tmp_path, folder, precision="bfloat16-mixed")
    assert mixed.weights - without.weights == 6 * NUMBERS, "float32, and a copy in bfloat16"
    less = ppo_room(tmp_path, folder, value_model=str(folder), gradient_checkpointing=True).activations
    assert less is not None and alone.activations < less < beside.activations, "the critic's are not recomputed"


def test_devices_share_a_rollout(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("llama")
    assert ppo_room(tmp_path, folder, devices=4).cache == ppo_room(tmp_path, folder).cache // 4


def test_the_device_is_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [{"name": f"card {n}", "memory_gib": 10 * (n + 1)} for n in range(2)]
    monkeypatch.setattr("tdpo.runs.machine.accelerators", lambda: cards)
    monkeypatch.setattr("tdpo.runs.machine.hardware", lambda: {"memory_gib": 5})
    sizes = {choice: _device(choice) for choice in ("auto", "cuda:1", "cpu", "cuda:2")}
    assert sizes == {
        "auto": ("card 0", 10 * 2**30),
        "cuda:1": ("card 1", 20 * 2**30),
        "cpu": ("the machine", 5 * 2**30),
        "cuda:2": ("cuda:2", None),
    }


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
    monkeypatch.setattr("tdpo.cli._memory_checks._device", lambda choice: ("the card", 1000))
    done = call("doctor", str(recipe_file))
    assert done.exit_code == 1 and "1 problem: memory" in done.output
    assert "it does not fit: the card has " in done.output and "a smaller micro_batch_size gives" in done.output
    assert call("doctor", "--devices", "2").exit_code == 2
