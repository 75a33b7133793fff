"""Where models run: what is chosen, what is refused, and how processes share GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdpo.config import load_recipe
from tdpo.config.recipe_problems import RecipeError
from tdpo.evaluation.trained_model import TrainedModel
from tdpo.models import load_causal_lm
from tdpo.models.devices import device_of, placed, share_gpus
from tdpo.workflows.policy_of_recipe import load_policy
from tdpo.workflows.trainer_arguments import pair_arguments


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Pretends that there are so many GPUs; gives the list of those that were made current."""

    def pretend(count: int) -> list[int]:
        current: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1] if current else 0)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(torch.device("cuda", device).index))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        return current

    return pretend


def test_a_gpu_is_taken_where_there_is_one(gpus: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    current = gpus(3)
    assert device_of() == torch.device("cuda", 0) and device_of("cpu") == torch.device("cpu")
    assert device_of("cuda:2") == torch.device("cuda", 2) and current[-1] == 2
    assert device_of("cuda") == device_of("auto") == torch.device("cuda", 2), "that which was chosen stays current"
    monkeypatch.setenv("LOCAL_RANK", "4")
    assert device_of("auto") == torch.device("cuda", 1), "each process of a launch has its own"
    gpus(0)
    assert device_of("auto") == torch.device("cpu")


def test_what_is_not_there_is_refused(gpus: Callable[[int], list[int]], tiny_folder: Callable[[str], Path]) -> None:
    gpus(1)
    with pytest.raises(ValueError, match=r"no device cuda:1 here: torch sees cuda:0, cpu"):
        device_of("cuda:1")
    with pytest.raises(ValueError, match="must be auto, cpu"):
        device_of("gpu")
    gpus(0)
    for name in ("cuda", "mps"):
        with pytest.raises(ValueError, match=rf"no device {name} here: torch sees cpu"):
            load_causal_lm(tiny_folder("llama"), device=name)


@pytest.mark.parametrize(
    ("choice", "place"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("auto", "cuda:2"), (None, "cuda:2")]
)
def test_a_quantised_base_is_loaded_where_it_is_to_be(
    choice: str | None, place: str, gpus: Callable[[int], list[int]], tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It stays where it is loaded: on another GPU than its trainer's, or than this worker's, nothing could run."""
    from transformers import BitsAndBytesConfig

    gpus(3)
    share_gpus(2)
    places = []

    def read(*arguments: Any, **_: Any) -> Any:
        places.append(arguments[4]["device_map"])
        raise FileNotFoundError("this far, and no further")

    monkeypatch.setattr("tdpo.models.model_loading._read_weights", read)
    four, folder = BitsAndBytesConfig(load_in_4bit=True), tiny_folder("llama")
    with pytest.raises(FileNotFoundError, match="no further"):
        load_causal_lm(folder, quantization=four, device=choice)
    assert places == [{"": place}]


def test_both_models_of_an_evaluation_are_loaded_on_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = []

    def load(name: Any, **arguments: Any) -> torch.nn.Module:
        loaded.append(arguments["device"])
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr("tdpo.evaluation.trained_model.load_causal_lm", load)
    model = TrainedModel(tmp_path, "another", {})
    model.load("auto", trust_remote_code=False, device="cpu")
    model.load_reference("auto", trust_remote_code=False, device="cpu")
    assert loaded == ["cpu", "cpu"]


def test_workers_share_gpus_in_turn(gpus: Callable[[int], list[int]]) -> None:
    current = gpus(2)
    for worker in range(5):
        share_gpus(worker)
    assert current == [0, 1, 0, 1, 0]
    gpus(0)
    share_gpus(3)


def test_weights_that_others_placed_stay(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    model.hf_device_map = {"": "cpu"}
    assert placed(model, "meta-like nonsense") is model


def test_a_recipe_says_where_its_models_run(tiny_folder: Callable[[str], Path]) -> None:
    recipe = {"run_dir": "run", "data": {"train": "rows.jsonl"}, "model": {"name": str(tiny_folder("llama"))}}
    on_cpu = load_recipe(recipe, ["model.device=cpu"])
    assert pair_arguments(on_cpu).device.type == "cpu" and pair_arguments(on_cpu).use_cpu
    assert next(load_policy(on_cpu.model).parameters()).device.type == "cpu"
    assert not pair_arguments(load_recipe(recipe)).use_cpu
    with pytest.raises(RecipeError, match=r"model\.device"):
        load_recipe(recipe, ["model.device=gpu"])
