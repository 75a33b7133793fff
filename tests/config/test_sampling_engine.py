"""The engine of sampling in recipes: what it needs, and what has no effect beside it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tdpo.config import RecipeError, load_recipe, load_study
from tdpo.config.sampling_engine import SamplingEngine

SERVER = {"engine": "vllm", "url": "http://127.0.0.1:8000"}
PPO = {"run_dir": "run", "environment": {"name": "sentiment"}, "ppo": {}}
PREFERENCES = {"run_dir": "run", "data": {"train": "pairs.jsonl"}}


def problems(values: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(values)
    return {problem.key: problem.reason for problem in caught.value.problems}


@pytest.mark.parametrize("kind", [PPO, {**PPO, "ppo": None, "online": {}}, PREFERENCES], ids=["ppo", "online", "pairs"])
def test_every_kind_of_recipe_names_a_server(kind: dict[str, Any]) -> None:
    kind = {key: value for key, value in kind.items() if value is not None}
    assert not load_recipe(kind).sampling.is_server
    sampling = load_recipe({**kind, "sampling": {**SERVER, "timeout": 30.0}}).sampling
    assert sampling.is_server and sampling.engine_alone() == SamplingEngine(**SERVER, timeout=30.0)


@pytest.mark.parametrize(
    ("section", "key", "reason"),
    [
        ({"engine": "vllm"}, "url", "is missing: engine vllm needs the address"),
        ({"url": "http://here:1"}, "url", "has no effect with engine built-in"),
        ({"adapter_dir": "shared"}, "adapter_dir", "has no effect with engine built-in"),
        ({"timeout": 5.0}, "timeout", "has no effect with engine built-in"),
        ({**SERVER, "url": "127.0.0.1:8000"}, "url", "is no address; expected http://HOST:PORT"),
        ({**SERVER, "url": "http://here:port"}, "url", "is no address"),
        ({**SERVER, "url": "http://here:1/v1"}, "url", "has a path"),
        ({**SERVER, "url": "http://me:word@here:1"}, "url", "holds a password.*VLLM_API_KEY"),
        ({**SERVER, "engine": "sglang"}, "engine", "built-in"),
    ],
)
def test_what_is_wrong_with_the_section(section: dict[str, Any], key: str, reason: str) -> None:
    found = problems({**PPO, "sampling": section})
    assert list(found) == [f"sampling.{key}"]
    assert re.search(reason, found[f"sampling.{key}"])


def test_what_does_not_go_with_a_server() -> None:
    full = problems({**PPO, "model": {"lora": None}, "sampling": SERVER})
    assert list(full) == ["sampling.engine"] and "all weights are trained" in full["sampling.engine"]
    unmerged = problems({**PPO, "sampling": SERVER, "rollouts": {"merge_adapter": False}})
    assert list(unmerged) == ["rollouts.merge_adapter"]
    assert load_recipe({**PPO, "sampling": SERVER, "ppo": {"importance_weight_cap": 2.0}})
    alone = problems({**PPO, "ppo": {"importance_weight_cap": 2.0}})
    assert "no effect with sampling.engine built-in" in alone["ppo.importance_weight_cap"]


def test_a_study_hands_the_server_on_to_its_cells(tmp_path: Any) -> None:
    from tdpo.comparison.cells import StudyFiles, training_recipe
    from tdpo.records.study_tables import CellKey

    values = {
        "study_dir": str(tmp_path), "tasks": [{"environment": {"name": "sentiment"}}], "sampling": SERVER,
        "arms": [{"name": "tdpo2", "strengths": [0.1]}, {"name": "ppo_reverse", "strengths": [0.05]}],
    }  # fmt: skip
    study = load_study(values)
    for arm, strength in (("tdpo2", "0.1"), ("ppo_reverse", "0.05")):
        recipe = training_recipe(study, StudyFiles(tmp_path), CellKey("sentiment", arm, strength, 0))
        assert recipe.sampling.engine_alone() == SamplingEngine(**SERVER)


@pytest.mark.parametrize("kind", [PPO, PREFERENCES], ids=["ppo", "pairs"])
def test_a_quantised_base_is_not_sampled_by_a_server(kind: dict[str, Any]) -> None:
    found = problems({**kind, "sampling": SERVER, "model": {"quantization": {"bits": 4}}})
    assert "vllm with a quantised base" in found["sampling.engine"]


@pytest.mark.parametrize(
    ("keys", "key", "reason"),
    [
        ({"model": {"lora": None}}, "sampling.engine", "here all weights are trained"),
        ({"model": {"quantization": {"bits": 4}}}, "sampling.engine", "vllm with a quantised base"),
        ({"model": {"reference": "another/model"}}, "sampling.engine", "model.reference is another one that would"),
        ({"temperatures": [0.5, 4.0]}, "temperatures", "from 0.01 to 2, not at 4"),
    ],
    ids=["all weights", "quantised", "reference", "temperature"],
)
def test_a_study_does_not_train_what_no_server_can_judge(
    keys: dict[str, Any], key: str, reason: str, tmp_path: Any
) -> None:
    """Its cells would be trained, and then could not be evaluated."""
    values = {
        "study_dir": str(tmp_path), "tasks": [{"environment": {"name": "sentiment"}}], **keys,
        "arms": [{"name": "tdpo2", "strengths": [0.1]}],
    }  # fmt: skip
    assert load_study(values)
    with pytest.raises(RecipeError) as caught:
        load_study({**values, "sampling": SERVER})
    [problem] = caught.value.problems
    assert problem.key == key and reason in problem.reason


def test_a_study_goes_on_with_a_server_that_has_moved(tmp_path: Any) -> None:
    from tdpo.comparison.study import _changed

    values = {
        "study_dir": str(tmp_path), "tasks": [{"environment": {"name": "sentiment"}}],
        "arms": [{"name": "tdpo2", "strengths": [0.1]}],
    }  # fmt: skip
    before = load_study({**values, "sampling": SERVER})
    moved = {**SERVER, "url": "http://there:9000", "timeout": 30.0, "adapter_dir": "/shared"}
    assert _changed(before, load_study({**values, "sampling": moved})) == []
    assert [line.split(":")[0] for line in _changed(before, load_study(values))] == ["  sampling.engine"]
