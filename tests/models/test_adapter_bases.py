"""The base that an adapter names can be found again, from anywhere, and is never a stranger's model of that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.run_cases import go, ppo_recipe_in, recipe_in, write_inputs
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, make_trainer, plain_rows
from tdpo.config import AnyRecipe
from tdpo.models import cache_folder, load_causal_lm, load_tokenizer
from tdpo.models.adapter_bases import adapter_base, findable_base, note_base
from tdpo.models.adapters import LoraSettings, add_lora
from tdpo.runs import RunDirectory, RunError
from tdpo.workflows.model_card import model_card

REVISION = "0123456789abcdef0123456789abcdef01234567"


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def edited(folder: Path, **values: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**config_of(folder), **values}))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub on which strangers have a model of every name: asking it is a failure."""

    def asked(*arguments: Any, **_: Any) -> Any:
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.file_download._hf_hub_download_to_cache_dir", asked)
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)


@pytest.fixture
def hub_model(tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a hub model in this machine's cache."""
    hub = tmp_path / "hub"
    model = hub / "models--tiny--llama"
    shutil.copytree(tiny_folder("llama"), model / "snapshots" / REVISION)
    (model / "snapshots" / ("e" * 40)).mkdir()  # another one, which is not the newest
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    for place in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.HF_HUB_CACHE"):
        monkeypatch.setattr(place, str(hub), raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    return "tiny/llama"


@pytest.mark.parametrize("make", [recipe_in, ppo_recipe_in])
def test_a_folder_is_found_from_anywhere(
    make: Callable[..., AnyRecipe], tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path, tiny_folder("llama"))
    monkeypatch.chdir(tmp_path)
    run = go(make(tmp_path, "model.name=base", f"run_dir={tmp_path / 'run'}"))
    for folder in (run.model_path, *run.checkpoints().complete):
        assert config_of(folder)["base_model_name_or_path"] == str(tmp_path / "base"), folder
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_causal_lm(run.model_path) is not None

    # As earlier versions noted it: a name, which is a folder beside the run.
    edited(run.model_path, base_model_name_or_path="base")
    assert load_causal_lm(run.model_path) is not None
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no model at base: .*elsewhere or around.*\"revision\": \"main\""):
        load_causal_lm(run.model_path)
    edited(run.model_path, base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(FileNotFoundError, match=r"base: the folder does not exist \(It is .* put it back, or set"):
        load_causal_lm(run.model_path)


def test_a_folders_name_is_never_looked_up_on_the_hub(
    tiny_folder: Callable[[str], Path], tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapted = add_lora(build_model("llama"), LoraSettings(rank=2))
    for base in ("base", "models/base"):
        folder = tmp_path / f"place-of-{base.replace('/', '-')}" / "run"
        adapted.save_pretrained(folder / "model")
        edited(folder / "model", base_model_name_or_path=base)
        for name in ("recipe.yaml", "status.json"):
            (folder / name).write_text("{}")
        with pytest.raises(FileNotFoundError, match=rf"no model at {base}"):
            load_causal_lm(folder / "model")


def test_a_hub_model_is_noted_with_its_revision_and_found_offline(hub_model: str, tmp_path: Path) -> None:
    policy = add_lora(load_causal_lm(hub_model), LoraSettings(rank=2))
    trainer = make_trainer(policy, tmp_path / "out", load_tokenizer(hub_model), plain_rows(2), max_steps=1)
    trainer.save_model(str(tmp_path / "adapter"))
    noted = config_of(tmp_path / "adapter")
    assert (noted["base_model_name_or_path"], noted["revision"]) == (hub_model, REVISION)
    assert adapter_base(tmp_path / "adapter") == f"{hub_model}@{REVISION}"
    again = load_causal_lm(tmp_path / "adapter", trainable=True)
    note_base(again)
    again.save_pretrained(tmp_path / "twice")
    assert config_of(tmp_path / "twice")["base_model_name_or_path"] == hub_model
    edited(tmp_path / "adapter", revision="f" * 40)
    with pytest.raises(FileNotFoundError, match=r"tiny/llama at revision f+ is not in the cache .*hf download"):
        load_causal_lm(tmp_path / "adapter")


def test_another_programs_adapter_of_a_hub_model_loads(hub_model: str, tmp_path: Path) -> None:
    from peft import get_peft_model

    adapted = get_peft_model(load_causal_lm(hub_model), lora("q_proj"))
    adapted.save_pretrained(tmp_path / "adapter")
    assert config_of(tmp_path / "adapter")["revision"] is None
    assert load_causal_lm(tmp_path / "adapter") is not None


def test_the_bundled_model_is_noted_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = cache_folder() / "models" / "smollm2-135m-0.1.2"
    monkeypatch.setattr("tdpo.models.adapter_bases._is_local", lambda name: True)
    assert findable_base("smollm2-135m") == findable_base(str(copy)) == ("smollm2-135m", None)
    monkeypatch.undo()
    adapted = add_lora(build_model("llama"), LoraSettings(rank=2))
    adapted.save_pretrained(tmp_path)
    for noted in ("smollm2-135m", "/home/somebody/.cache/tdpo/models/smollm2-135m-0.1.2"):
        edited(tmp_path, base_model_name_or_path=noted)
        assert adapter_base(tmp_path) == "smollm2-135m"


def test_a_base_without_a_name_is_left_alone(tmp_path: Path) -> None:
    model = build_model("llama")
    trainer = make_trainer(model, tmp_path, build_tokenizer(), plain_rows(2), peft_config=lora("q_proj"), max_steps=1)
    trainer.save_model(str(tmp_path / "adapter"))
    assert not config_of(tmp_path / "adapter")["base_model_name_or_path"]
    with pytest.raises(ValueError, match="names no base model: set base_model_name_or_path"):
        load_causal_lm(tmp_path / "adapter")
    assert isinstance(next(model.parameters()), torch.Tensor)


def test_the_base_of_a_full_model_is_found_too(
    tiny_folder: Callable[[str], Path], tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path, tiny_folder("llama"))
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(tmp_path / "run")
    recipe = recipe_in(tmp_path, "model.name=base", "model.reference=base", "model.lora=null")
    run.create(recipe)
    assert run.with_models_found(recipe) is recipe
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = run.with_models_found(run.recipe()).model
    assert model.name == model.reference == str(tmp_path / "base")
    with pytest.raises(RunError, match=r"was begun elsewhere: .* from .*elsewhere \(model.name was .*base"):
        run.take_up(recipe)
    (tmp_path / "base").rename(tmp_path / "gone")
    from tdpo.evaluation import evaluate_run

    with pytest.raises(FileNotFoundError, match=r"model.name base was the folder .*base when the run began; .*recipe"):
        evaluate_run(run, recipe_in(tmp_path, "model.name=base", "model.lora=null", "data.eval=pairs.jsonl"))


def test_the_card_says_how_to_load_each_kind_of_base(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    def card(name: str, *lora: str) -> str:
        recipe = recipe_in(tmp_path, f"model.name={name}", *lora)
        return model_card(recipe, {}, {}, None, {})

    bundled = card("smollm2-135m")
    assert "bundled_folder()" in bundled and "tdpo merge" in bundled
    assert 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"' in bundled
    local = card(str(tiny_folder("llama")))
    assert "AutoPeftModelForCausalLM" in local and f"base_model: {json.dumps(str(tiny_folder('llama')))}" in local
    assert "AutoPeftModelForCausalLM" not in card("org/name", "model.lora=null")
