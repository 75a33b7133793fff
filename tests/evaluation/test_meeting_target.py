"""The factor on an adapter that brings the KL to a target: found where it is known, measured by another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.study_cases import read, write_study
from helpers.tiny_models import build_model, build_tokenizer, shake_adapter
from helpers.training_cases import lora
from tdpo.comparison.cells import StudyFiles, evaluation_recipe, reference_cell, training_prompts, training_recipe
from tdpo.comparison.meeting import meeting_prompts
from tdpo.comparison.work import do_cell
from tdpo.config import RecipeError
from tdpo.environments import Environment, Prompt
from tdpo.evaluation import evaluate_run
from tdpo.evaluation.held_out_responses import distances
from tdpo.evaluation.meeting_target import LEAST, MOST, meeting_factor, scale_to_target
from tdpo.models import reference_for
from tdpo.models.adapter_scaling import save_scaled_adapter, scaling_adapter
from tdpo.models.adapters import load_adapter
from tdpo.records.json_files import read_json
from tdpo.records.study_tables import CellKey
from tdpo.runs import RunDirectory
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.scoring.policy_statistics import PolicyStatistics

PROMPTS = [Prompt(str(i), f"say {i} things") for i in range(6)]
SETTINGS = SamplingSettings(num_samples=4, max_new_tokens=6, seed=3)


def adapted(seed: int = 0, **options: Any) -> Any:
    from peft import get_peft_model

    model = get_peft_model(build_model("llama"), lora(**options)).eval()
    shake_adapter(model, seed, std=0.05)
    return model


@pytest.mark.parametrize(
    ("kl_at", "target", "factor"),
    [
        (lambda f: 3.0 * f**2, 0.75, 0.5),
        (lambda f: 2.0 * f**1.3, 3.0, 1.5 ** (1 / 1.3)),
        (lambda f: 4.0 * (1 - math.exp(-(f**2))), 2.0, math.sqrt(math.log(2))),
        (lambda f: 2.01, 2.0, 1.0),
    ],
)
def test_the_factor_is_found_where_it_is_known(kl_at: Callable[[float], float], target: float, factor: float) -> None:
    found = meeting_factor(kl_at, target)
    assert abs(found.kl / target - 1) <= 0.021 and found.factor == pytest.approx(factor, rel=0.04)
    assert found.measured[0] == (1.0, kl_at(1.0)) and len(found.measured) <= 4
    assert meeting_factor(lambda f: 3.0 * f**2, 0.75).measured[1:] == [(pytest.approx(0.5), pytest.approx(0.75))]


def test_a_target_out_of_reach_gets_the_nearest_policy_within_the_bound() -> None:
    far, near = meeting_factor(lambda f: f**2, 100.0), meeting_factor(lambda f: f**2, 1e-4)
    assert (far.factor, far.kl) == (MOST, MOST**2) and near.factor == LEAST
    for kl in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="no factor makes it 2"):
            meeting_factor(lambda _, kl=kl: kl, 2.0)  # type: ignore[misc]


def test_a_scaled_adapter_adds_a_multiple_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    model, ids = adapted(), torch.arange(2, 20)[None]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    layers = [m for m in model.modules() if hasattr(m, "lora_B")]
    with torch.no_grad():
        for layer in layers:
            layer.scaling["default"] *= 0.7
        expected = model(ids).logits
        for layer in layers:
            layer.scaling["default"] /= 0.7
        with scaling_adapter(model) as scale:
            scale(1.9)
            scale(0.7)
            torch.testing.assert_close(model(ids).logits, expected)
            scale(0.0)
            with model.disable_adapter():
                reference = model(ids).logits
            torch.testing.assert_close(model(ids).logits, reference)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/tokenizer_config.json").write_text("{}")
    save_scaled_adapter(tmp_path / "adapter", tmp_path / "scaled", 0.7)
    assert (tmp_path / "scaled/tokenizer_config.json").exists()
    torch.testing.assert_close(load_adapter(build_model("llama"), tmp_path / "scaled")(ids).logits, expected)


def test_what_is_no_line_from_the_reference_is_refused(tmp_path: Path) -> None:
    for number, options in enumerate(
        ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only", "lora_bias": True})
    ):
        model = adapted(**options)
        with pytest.raises(ValueError, match="more than plain LoRA"), scaling_adapter(model):
            pass
        model.save_pretrained(tmp_path / str(number))
        with pytest.raises(ValueError, match=f"more than plain LoRA .{next(iter(options))[:4]}|lora_bias, bias"):
            save_scaled_adapter(tmp_path / str(number), tmp_path / "scaled", 0.5)
        assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(number + 1)]
    with pytest.raises(ValueError, match="no LoRA adapter"), scaling_adapter(build_model("llama")):
        pass


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_kl_meets_the_target_as_an_evaluation_measures_it(direction: Any) -> None:
    model, tokenizer = adapted(), build_tokenizer()
    statistics = PolicyStatistics.of(model, reference_for(model, None))
    texts = [prompt.rendered_from for prompt in PROMPTS]

    def measured() -> float:
        own = sample(model, tokenizer, texts, SETTINGS)
        with model.disable_adapter():
            base = sample(model, tokenizer, texts, SETTINGS)
        kls = distances(model, statistics, tokenizer, PROMPTS, own, base, batch_size=5)
        values: list[float] = getattr(kls, f"{direction}_kl")
        return math.fsum(values) / len(values)

    start = measured()
    target = start / 2
    steps: list[tuple[int, int]] = []
    found = scale_to_target(
        model, statistics, tokenizer, texts, SETTINGS, target, direction, progress=lambda *step: steps.append(step)
    )
    assert found.measured[0][1] == pytest.approx(start, rel=1e-4) and 0.5 < found.factor < 0.95
    assert measured() == pytest.approx(start, rel=1e-6), "the policy has its own weights again"
    with scaling_adapter(model) as scale:
        scale(found.factor)
        assert measured() == pytest.approx(found.kl, rel=1e-4)
    assert abs(found.kl / target - 1) <= 0.021 and [done for done, _ in steps] == list(range(1, len(steps) + 1))


def test_a_kl_is_measured_on_prompts_that_were_not_trained_on_where_enough_are_left(tmp_path: Path) -> None:
    study = read(write_study(tmp_path))
    environment = Environment(
        name="many", train=[Prompt(str(i), str(i)) for i in range(60)], held_out=[], reward=None, reward_name="",
        max_new_tokens=4, description="", threshold=0.0,
    )  # fmt: skip
    prompts = meeting_prompts(study, environment, seed=0)
    assert len(prompts) == 48
    trained_on = {prompt.id for prompt in training_prompts(study, environment, 0).train}
    assert len(trained_on) == 4 and not trained_on & {prompt.id for prompt in prompts}
    few = replace(environment, train=environment.train[:20])
    assert len(meeting_prompts(study, few, seed=0)) == 20
    more = replace(environment, held_out=[Prompt(f"h{i}", f"h{i}") for i in range(70)])
    chosen = {prompt.id for prompt in meeting_prompts(study, more, seed=0)}
    assert len(chosen) == 48 and not chosen & {"h0", "h1", "h2", *trained_on}, "three are judged"


def test_a_study_judges_the_model_on_target_and_makes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    def listened(*args: Any, **options: Any) -> Any:
        asked.append(args[5:7])
        return scale_to_target(*args, **options)

    monkeypatch.setattr("tdpo.comparison.meeting.scale_to_target", listened)
    arms = [{"name": "online_dpo_forward", "targets": [0.5], "train_at": 3}]
    study = read(_only_letters(tmp_path, arms))
    files, cell = StudyFiles.of(study), CellKey("letters", "online_dpo_forward", "0.5", 0)
    for one in (reference_cell("letters", 0), cell):
        do_cell(study, files, one, lambda *_: None)
    folder = files.cell(cell)
    assert training_recipe(study, files, cell).loss.kl.target == 1.5  # type: ignore[union-attr]
    meeting, measured = read_json(folder / "on_target.json"), read_json(folder / "measured.json")
    assert measured["overall"]["adapter_factor"] == meeting["factor"] != 1.0
    assert abs(meeting["kl"] / 0.5 - 1) < abs(meeting["measured"][0][1] / 0.5 - 1)
    assert asked == [(0.5, "reverse")], "the study's direction, not the arm's"
    judged = read_json(folder / "run/evaluation.json")["generations"]["trained"]["reverse_kl"]
    unscaled = evaluate_run(RunDirectory(folder / "run"), evaluation_recipe(study, files, cell))
    assert unscaled["generations"]["trained"]["reverse_kl"] != judged
    weights = folder / "model-on-target/adapter_model.safetensors"
    made = weights.stat().st_mtime_ns
    do_cell(study, files, cell, lambda *_: None)
    assert weights.stat().st_mtime_ns == made and read_json(folder / "measured.json") == measured
    (folder / "on_target.json").unlink()  # as a kill in the middle leaves it
    do_cell(study, files, cell, lambda *_: None)
    assert weights.stat().st_mtime_ns > made and read_json(folder / "measured.json") == measured


def _only_letters(folder: Path, arms: list[dict[str, Any]]) -> Path:
    path = write_study(folder, arms=arms, ppo=None, training=None, best_of=None, temperatures=None, meet_targets=True)
    study = yaml.safe_load(path.read_text())
    study["tasks"] = study["tasks"][:1]
    path.write_text(yaml.safe_dump(study))
    return path


def test_a_study_that_cannot_meet_targets_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, meet_targets=True)
    with pytest.raises(RecipeError, match="meet_targets: needs prompts, and"):
        read(path)
    path = _only_letters(tmp_path, [{"name": "ppo_forward", "targets": [0.5]}])
    with pytest.raises(RecipeError, match="meet_targets: scales adapters"):
        read(path, "model.lora=null")
    path = _only_letters(tmp_path, [{"name": "ppo_forward", "strengths": [0.5], "train_at": 2}])
    with pytest.raises(RecipeError, match=r"arms\[0\].train_at: has no effect"):
        read(path, "target_direction=null", "meet_targets=false")
    path = _only_letters(tmp_path, [{"name": "sft", "strengths": [1e-3]}])
    with pytest.raises(RecipeError, match="meet_targets: has no effect: no arm has targets"):
        read(path, "target_direction=null")
