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
from tdpo.cli._memory_checks import _device, _memory, _remedy
from tdpo.config import load_recipe
from tdpo.models import load_tokenizer, model_facts
from tdpo.recipe_data.pairs import read_data, tokenize_rows
from tdpo.workflows.memory_batches import LearnedBatch, batch_of_pairs, batch_of_prompts
from tdpo.workflows.memory_room import MemoryRoom, memory_of
from tdpo.workflows.models_of_run import ModelsOfRun

BATCH = LearnedBatch(rows=4, tokens=24, counted=32, sequence=16, response=8, drawn=64)
NUMBERS = sum(p.numel() for p in build_model("llama").parameters())
HEAD = 4 * build_model("llama").lm_head.weight.numel()  # bytes


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
    assert plain.gradients == 4 * NUMBERS and plain.optimizer == 8 * NUMBERS
    assert plain.weights == 4 * NUMBERS + HEAD, "a cached reference is read with a copy of its head"
    assert plain.activations is not None and plain.cache == plain.collecting == plain.waiting == 0
    assert room(recipe_file, "training.reference=model").weights == 8 * NUMBERS, "a copy of the start runs beside it"
    assert room(recipe_file, "training.optimizer=sgd").optimizer == 0
    less = room(recipe_file, "training.gradient_checkpointing=true").activations
    assert less is not None and less < 0.75 * plain.activations
    mixed = room(recipe_file, "training.precision=bfloat16-mixed")
    assert mixed.weights == plain.weights and mixed.rounded == 2 * NUMBERS
    assert mixed.activations is not None and mixed.activations < plain.activations


def test_what_an_optimizer_steps_with(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As benchmarks/memory.py measured: torch's AdamW has two more numbers for a weight, and goes over them one by one
    on a CPU. On a GPU it has one for all weights at once."""
    assert room(recipe_file).step == 2 * HEAD, "the largest weight"
    for optimizer in ("sgd", "adamw_torch_fused", "adamw_8bit"):
        assert room(recipe_file, f"training.optimizer={optimizer}").step == 0
    monkeypatch.setattr("tdpo.workflows.memory_room.device_of", lambda choice: torch.device("cuda"))
    assert room(recipe_file).step == 4 * NUMBERS


def test_an_embedding_that_is_the_head_has_two_gradients(tmp_path: Path, recipe_file: Path) -> None:
    config = build_model("llama").config
    config.tie_word_embeddings = True
    type(build_model("llama"))(config).save_pretrained(tmp_path / "tied")
    assert room(recipe_file, f"model.name={tmp_path / 'tied'}", "training.optimizer=sgd").step == HEAD


def test_a_gradient_waits_for_the_next_micro_batch(recipe_file: Path, tiny_folder: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(str(tiny_folder("llama")))
    for micro, waits in (("null", False), ("2", True), ("8", False)):
        recipe = load_recipe(recipe_file, ["training.batch_size=8", f"training.micro_batch_size={micro}"])
        rows = read_data(recipe).train
        pairs = tokenize_rows(rows, recipe, tokenizer, model_facts(recipe.model.name, tokenizer)).pairs
        batch, models = batch_of_pairs(recipe, pairs), ModelsOfRun.of(recipe)
        assert models is not None
        assert memory_of(recipe, models, batch).waiting == waits * 4 * NUMBERS


def test_a_named_reference_runs_only_until_it_is_cached(
    recipe_file: Path, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    named = f"model.reference={tiny_folder('llama')}"
    cached = room(recipe_file, named)
    assert cached.weights == 4 * NUMBERS + HEAD and cached.collecting == 4 * NUMBERS
    live = room(recipe_file, named, "training.reference=model")
    assert live.weights == 8 * NUMBERS and live.collecting == 0
    shared = room(recipe_file, named, devices=4)
    assert shared.collecting == 0, "auto keeps a reference whose weights are shared"
    assert shared.weights - room(recipe_file, "training.reference=cache", devices=4).weights == NUMBERS - HEAD


def test_an_adapter_on_a_gpu_is_rounded_for_its_products(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("model.lora.rank=4", "model.dtype=bfloat16")
    on_cpu = room(recipe_file, *overrides)
    monkeypatch.setattr("tdpo.workflows.models_of_run.device_of", lambda choice: torch.device("cuda"))
    on_gpu = room(recipe_file, *overrides)
    adapters = on_cpu.gradients // 4
    assert on_gpu.rounded == 2 * adapters and on_cpu.rounded == 0 and on_gpu.weights == on_cpu.weights
    assert on_gpu.gradients == on_cpu.gradients
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


PPO: dict[str, Any] = {
    "run_dir": "run",
    "prompts": {"train": "prompts.jsonl"},
    "rewards": [{"function": "mine.py:reward"}],
    "rollouts": {"completions": 64, "max_new_tokens": 8, "batch_size": 64},
    "ppo": {"minibatch_size": 8},
}


def ppo_recipe(tmp_path: Path, folder: Path, **ppo: Any) -> Any:
    changed = {"run_dir": str(tmp_path / "run"), "model": {"name": str(folder), "lora": None}}
    return load_recipe({**PPO, **changed, "ppo": {**PPO["ppo"], **ppo}})


def ppo_room(tmp_path: Path, folder: Path, **ppo: Any) -> MemoryRoom:
    recipe = ppo_recipe(tmp_path, folder, **ppo)
    models = ModelsOfRun.of(recipe)
    assert models is not None
    return memory_of(recipe, models, BATCH)


def test_a_critic_of_its_own_keeps_activations_too(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Policy and critic pass a micro-batch one after the other, and then comes the backward of both."""
    folder = tiny_folder("llama")
    alone, beside = ppo_room(tmp_path, folder), ppo_room(tmp_path, folder, value_model=str(folder))
    assert alone.activations and beside.activations == 2 * alone.activations
    mixed = ppo_room(tmp_path, folder, precision="bfloat16-mixed", value_model=str(folder))
    without = ppo_room(tmp_path, folder, precision="bfloat16-mixed")
    assert mixed.weights - without.weights == 4 * NUMBERS and mixed.rounded - without.rounded == 2 * NUMBERS
    less = ppo_room(tmp_path, folder, value_model=str(folder), gradient_checkpointing=True).activations
    assert less is not None and alone.activations < less < beside.activations, "the critic's are not recomputed"


def test_devices_share_a_rollout(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    recipe = ppo_recipe(tmp_path, tiny_folder("llama"))
    drawn = {devices: batch_of_prompts(recipe, 8, 8, devices).drawn for devices in (1, 4)}
    assert drawn == {1: 64, 4: 16}
    assert batch_of_prompts(recipe, 8, 8, 4, held_out=400).drawn == 64, "an evaluation draws more: rollouts.batch_size"


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
    assert MemoryRoom(**parts).peak == 175, "gradients come while activations go"
    assert MemoryRoom(**parts, waiting=10, rounded=7).peak == 192
    assert MemoryRoom(**{**parts, "activations": None, "head": 0}, step=9).peak == 139, "a step beside the gradients"
    assert MemoryRoom(**parts, cache=60, collecting=40).peak == 220
    assert "activations unknown without values" in MemoryRoom(**{**parts, "activations": None}).in_words()


def test_doctor_says_whether_it_fits(
    call: Callable[..., Result], recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("doctor", str(recipe_file), "--devices", "2")
    assert done.exit_code == 0, done.output
    assert "at the peak, " in done.output and "(weights" in done.output and "it fits: " in done.output
    assert "on each of 2 devices that share the weights, with 8 rows of up to" in done.output
    monkeypatch.setattr("tdpo.cli._memory_checks._device", lambda choice: ("the card", 1000))
    done = call("doctor", str(recipe_file))
    assert done.exit_code == 1 and "1 problem: memory" in done.output
    assert "it does not fit: the card has " in done.output and "a smaller micro_batch_size gives" in done.output
    assert call("doctor", "--devices", "2").exit_code == 2


def test_between_fitting_and_not_is_close(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(recipe_file)
    peak = room(recipe_file).peak
    said = {}
    for share in (0.79, 0.81, 0.99, 1.01):
        monkeypatch.setattr("tdpo.cli._memory_checks._device", lambda choice, share=share: ("a card", peak / share))
        [said[share]] = _memory(recipe, BATCH, 1)
    assert [check.state for check in said.values()] == ["ok", "note", "note", "problem"]
    assert "it is close: a card has" in said[0.81].text and "it does not fit: a card has" in said[1.01].text


@pytest.mark.parametrize(
    ("parts", "overrides", "named"),
    [
        ({"activations": 9}, (), ["micro_batch_size", "training.gradient_checkpointing", "model.lora"]),
        ({"activations": 9}, ("training.gradient_checkpointing=true",), ["micro_batch_size", "model.lora"]),
        ({"step": 9}, (), ["model.lora"]),
        ({"step": 9}, ("model.lora={rank: 4}",), ["model.quantization"]),
        ({"collecting": 9}, (), ["model.reference", "model.lora"]),
    ],
)
def test_what_helps_is_what_the_peak_is_made_of(
    recipe_file: Path, parts: dict[str, int], overrides: tuple[str, ...], named: list[str]
) -> None:
    none = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "head"), 0)
    remedy = _remedy(load_recipe(recipe_file, overrides), MemoryRoom(**{**none, **parts}))
    keys = ("micro_batch_size", "training.gradient_checkpointing", "model.reference", "rollouts", "model.lora",
            "model.quantization")  # fmt: skip
    assert [key for key in keys if key in remedy] == named and "--devices" in remedy


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ((), ["rollouts.batch_size"]),
        (("model.lora={rank: 2}",), ["rollouts.batch_size", "rollouts.merge_adapter"]),
        (("model.lora={rank: 2}", "sampling={engine: vllm, url: 'http://127.0.0.1:8000'}"), ["rollouts.completions"]),
    ],
)
def test_what_helps_while_responses_are_drawn(
    tmp_path: Path, tiny_folder: Callable[[str], Path], overrides: tuple[str, ...], named: list[str]
) -> None:
    (file := tmp_path / "ppo.yaml").write_text(
        json.dumps(PPO | {"model": {"name": str(tiny_folder("llama")), "lora": None}})
    )
    none = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "head"), 0)
    remedy = _remedy(load_recipe(file, overrides), MemoryRoom(**{**none, "cache": 9}))
    keys = ("rollouts.batch_size", "rollouts.merge_adapter", "rollouts.completions", "micro_batch_size")
    assert [key for key in keys if key in remedy] == named
