"""Judging a run: what evaluation.json says of a preference run and of a PPO run, and base samples used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_models import build_model, build_tokenizer
from tdpo.config import PPORecipe, Recipe
from tdpo.environments import Environment, Prompt, RewardError
from tdpo.evaluation import evaluate_run
from tdpo.evaluation.base_samples import FILE
from tdpo.models import LoraSettings, add_lora
from tdpo.records.json_files import read_json
from tdpo.runs import RunDirectory

SETTINGS = {"samples_per_prompt": 2, "max_new_tokens": 6, "seed": 3}


def letters(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [sum(map(str.isalpha, text)) / 10 for text in completions]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Three held-out prompts in place of the built-in ones."""
    held_out = [Prompt(f"held-{i}", [{"role": "user", "content": f"question {i}"}]) for i in range(3)]
    made = Environment("sentiment", held_out, held_out, letters, "letters", 8, "a test")
    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: made)
    return made


def trained_run(path: Path, *, seed: int) -> RunDirectory:
    """A run whose adapter is random: `model/` as training leaves it."""
    import torch

    policy = add_lora(build_model("llama"), LoraSettings(rank=2, alpha=4.0))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weights in policy.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.3)
    policy.save_pretrained(path / "model")
    build_tokenizer().save_pretrained(path / "model")
    return RunDirectory(path)


@pytest.fixture
def ppo_recipe(tiny_folder: Callable[[str], Path]) -> dict[str, Any]:
    return {
        "run_dir": "unused",
        "model": {"name": str(tiny_folder("llama")), "dtype": "float32", "lora": {"rank": 2}},
        "environment": {"name": "sentiment"},
        "ppo": {"iterations": 2},
        "evaluation": SETTINGS,
    }


@pytest.fixture
def saved(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDirectory]:
    """`trained_run` whose adapter names the saved tiny model as its base."""

    def run(path: Path, seed: int = 1) -> RunDirectory:
        made = trained_run(path, seed=seed)
        config = made.model_path / "adapter_config.json"
        facts = json.loads(config.read_text())
        config.write_text(json.dumps({**facts, "base_model_name_or_path": str(tiny_folder("llama"))}))
        return made

    return run


def test_a_ppo_run_has_generations_with_both_kls_and_no_pairs(
    saved: Callable[..., RunDirectory], ppo_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = saved(tmp_path / "ppo")
    found = evaluate_run(run, PPORecipe.model_validate(ppo_recipe))
    assert found["pairs"] is None
    assert found["run"]["loss"] == "ppo" and not {"beta", "alpha"} & found["run"].keys()
    assert (found["run"]["kl"]["direction"], found["run"]["kl"]["target"]) == ("reverse", 6.0)
    assert found["settings"]["prompts"] == 3 and found["settings"]["max_new_tokens"] == 6
    trained = found["generations"]["trained"]
    assert trained["count"] == 6 and trained["forward_kl"] > 0 and trained["reverse_kl"] > 0
    assert trained["reward_variance"] == pytest.approx(trained["reward_std"] ** 2)
    assert read_json(run.path / "evaluation.json") == found


def test_a_ppo_run_on_prompts_of_its_own(
    saved: Callable[..., RunDirectory], ppo_recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    (tmp_path / "eval.jsonl").write_text('{"prompt": "three"}\n')
    (tmp_path / "reward.py").write_text(
        "def size(prompts, completions, **_):\n    return [len(c) for c in completions]\n"
    )
    del ppo_recipe["environment"]
    ppo_recipe |= {
        "prompts": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "rewards": [{"function": f"{tmp_path / 'reward.py'}:size"}],
        "rollouts": {"max_new_tokens": 5},
    }
    run = saved(tmp_path / "ppo")
    found = evaluate_run(run, PPORecipe.model_validate(ppo_recipe))
    assert found["settings"]["prompts"] == 1 and found["settings"]["reward"] == "size"
    assert found["generations"]["base"]["count"] == 2
    ppo_recipe["rewards"] = [{**ppo_recipe["rewards"][0], "weight": weight} for weight in (2.0, -0.5)]
    several = evaluate_run(run, PPORecipe.model_validate(ppo_recipe))
    assert several["settings"]["reward"] == "size (1) + size (2)"
    means = [result["generations"]["base"]["reward_mean"] for result in (found, several)]
    assert means[1] == pytest.approx(1.5 * means[0])
    (tmp_path / "leaving.py").write_text("def leaves(**_):\n    raise SystemExit(0)\n")
    ppo_recipe["rewards"][1] = {"function": f"{tmp_path / 'leaving.py'}:leaves"}
    with pytest.raises(RewardError, match=r"reward 'leaves' raised SystemExit: 0 \(prompt 'eval\.jsonl:1'"):
        evaluate_run(run, PPORecipe.model_validate(ppo_recipe))
    del ppo_recipe["prompts"]["eval"]
    with pytest.raises(ValueError, match=r"holds no prompts out; set prompts\.eval"):
        evaluate_run(run, PPORecipe.model_validate(ppo_recipe))


def test_pairs_and_no_environment_is_said_as_before(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"run_dir": str(tmp_path), "data": {"train": "pairs.jsonl"}})
    with pytest.raises(ValueError, match=r"neither held-out rows .* nor an environment"):
        evaluate_run(RunDirectory(tmp_path), recipe)


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("seconds", "run")}


def test_base_samples_of_another_run_give_the_same_numbers(
    saved: Callable[..., RunDirectory],
    ppo_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second run is evaluated twice: with a base sampled anew, and with the first run's."""
    recipe = PPORecipe.model_validate(ppo_recipe)
    first, anew, reused = (saved(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 2)))
    evaluate_run(first, recipe)
    expected = evaluate_run(anew, recipe)
    sampled = count_samplings(monkeypatch)
    found = evaluate_run(reused, recipe, base_from=first)
    assert sampled == ["trained"]
    assert comparable(found) == comparable(expected)
    assert (reused.path / "samples.jsonl").read_bytes() == (anew.path / "samples.jsonl").read_bytes()
    assert (reused.path / FILE).read_bytes() == (anew.path / FILE).read_bytes()


def count_samplings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which models are sampled from now on."""
    from tdpo.evaluation import judged_models as module

    sampled: list[str] = []
    genuine = module.sample_and_score

    def counting(*args: Any, as_reference: bool, **kwargs: Any) -> Any:
        sampled.append("base" if as_reference else "trained")
        return genuine(*args, as_reference=as_reference, **kwargs)

    monkeypatch.setattr(module, "sample_and_score", counting)
    return sampled


@pytest.mark.parametrize("change", ["seed", "length", "prompts", "base", "nothing there"])
def test_base_samples_of_anything_else_are_not_used(
    change: str,
    saved: Callable[..., RunDirectory],
    ppo_recipe: dict[str, Any],
    environment: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b")
    evaluate_run(first, PPORecipe.model_validate(ppo_recipe))
    if change in ("seed", "length"):
        key = {"seed": "seed", "length": "max_new_tokens"}[change]
        ppo_recipe["evaluation"] = {**SETTINGS, key: SETTINGS[key] + 1}
    elif change == "prompts":
        environment.held_out[0] = Prompt("held-0", "another question")
    elif change == "base":
        other = tmp_path / "other"
        build_model("llama", seed=5).save_pretrained(other)
        config = second.model_path / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(other)}))
    else:
        (first.path / FILE).unlink()
    sampled = count_samplings(monkeypatch)
    evaluate_run(second, PPORecipe.model_validate(ppo_recipe), base_from=first)
    assert sampled == ["base", "trained"]
