"""Evaluating a run on preferences: both sides against the base's own numbers, the base's entropy, and a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model, build_tokenizer
from tdpo.cli._evaluated import Flags, evaluation_for
from tdpo.config import Recipe, dump_recipe, load_recipe
from tdpo.config.ppo_schema import Reward
from tdpo.environments.function_loading import FunctionError
from tdpo.evaluation import evaluate_run
from tdpo.evaluation.trained_model import described_run, holds_out_as_trained
from tdpo.models import LoraSettings, add_lora
from tdpo.records.json_files import read_json, read_jsonl
from tdpo.runs import RunDirectory
from tdpo.sampling.sampler import encode_prompts

JUDGE = """
def size(prompts, completions, **columns):
    return [len(text) / 10 for text in completions]
"""


def recipe_of(folder: Path, base: Path, *, lora: bool, answered: int | None = 2, loss: str = "tdpo2") -> Recipe:
    rows = [{"prompt": f"question {i}", "chosen": f" the cat {i}", "rejected": " a dog"} for i in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"samples_per_prompt": 2, "max_new_tokens": 5, "max_prompts": answered}
    return Recipe.model_validate(
        {
            "run_dir": "unused",
            "model": {"name": str(base), "dtype": "float32", "lora": {"rank": 2} if lora else None},
            "data": {"train": str(folder / "pairs.jsonl"), "eval": str(folder / "pairs.jsonl")},
            "evaluation": settings,
            "loss": {"name": loss},
        }
    )


def trained_run(path: Path, base: Path, *, lora: bool) -> RunDirectory:
    """A run with random weights, or a random adapter, as its trained model."""
    model = build_model("llama", seed=0 if lora else 5)
    if lora:
        model = add_lora(model, LoraSettings(rank=2, alpha=4.0))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "lora_B" in name:
                    weights.normal_(std=0.3)
    model.save_pretrained(path / "model")
    build_tokenizer().save_pretrained(path / "model")
    if lora:
        config = path / "model" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    return RunDirectory(path)


def log_probs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probabilities `[T, V]` over the vocabulary at each token of a response, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def test_whether_a_run_is_judged_on_what_its_own_training_held_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tmp_path, lora=False)
    run = RunDirectory(tmp_path)
    assert not holds_out_as_trained(run, recipe), "without the run's recipe nobody knows"
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert holds_out_as_trained(run, recipe)
    other = load_recipe(tmp_path, ["data.eval=other.jsonl"])
    assert not holds_out_as_trained(run, other), "rows of another file, of which training may have seen any"


@pytest.mark.parametrize("lora", [True, False], ids=["adapter, one frozen head", "all weights, two heads"])
def test_the_bases_own_numbers_stand_beside_the_trained_ones(
    lora: bool, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base_folder = tiny_folder("llama")
    run = trained_run(tmp_path / "run", base_folder, lora=lora)
    recipe = recipe_of(tmp_path, base_folder, lora=lora, loss="tdpo2" if lora else "simpo")
    result = evaluate_run(run, recipe)
    base, tokenizer = build_model("llama").eval(), build_tokenizer()

    lines = [line for line in read_jsonl(run.path / "samples.jsonl") if line["model"] == "base"]
    prompts = encode_prompts(tokenizer, ["question 0", "question 1"])
    said = (read_json(run.path / "base_samples.json") or {})["completions"]
    entropies = []
    for response in said:
        log_p = log_probs(base, prompts[response["prompt_index"]], response["token_ids"])
        entropies.append(float(-(log_p.exp() * log_p).sum(-1).mean()))
    assert [line["policy_entropy"] for line in lines] == pytest.approx(entropies, rel=1e-5)
    assert len(entropies) == 4 and len(set(entropies)) > 1
    generations = result["generations"]
    assert generations["base"]["policy_entropy"] == pytest.approx(sum(entropies) / 4, rel=1e-5)
    assert generations["base"]["policy_entropy_interval"] is None, "two prompts are too few for one"
    assert generations["trained"]["policy_entropy"] != pytest.approx(sum(entropies) / 4, rel=1e-3)

    pairs = result["pairs"]
    assert pairs["held_out"] is None, "a folder without a recipe does not say what its training held out"
    trained, means = build_model("llama", seed=5).eval(), {"chosen": 0.0, "rejected": 0.0}
    for side, text in (("chosen", " the cat {}"), ("rejected", " a dog")):
        expected = []
        for i in range(4):
            prompt, whole = (tokenizer(t)["input_ids"] for t in (f"question {i}", f"question {i}{text.format(i)}"))
            response = [*whole[len(prompt) :], tokenizer.eos_token_id]
            expected.append(float(log_probs(base, prompt, response).gather(1, torch.tensor([response]).T).sum()))
            means[side] += float(log_probs(trained, prompt, response).gather(1, torch.tensor([response]).T).mean()) / 4
        assert pairs[f"{side}_reference_logp"] == pytest.approx(sum(expected) / 4, rel=1e-5)
        change = pairs[f"{side}_logp"] - pairs[f"{side}_reference_logp"]
        assert pairs[f"{side}_log_ratio"] == pytest.approx(change, abs=1e-4) and abs(change) > 0.01
        assert pairs["intervals"][f"{side}_log_ratio"] is None, "four prompts are too few for one"
    if not lora:  # simpo, whose margin knows no reference
        assert pairs["margin"] == pytest.approx(2.0 * (means["chosen"] - means["rejected"]), rel=1e-5)
        assert described_run(run, recipe) == {"name": "run", "loss": "simpo", "beta": 2.0, "alpha": None, "gamma": 1.0,
                                              "model": str(base_folder)}  # fmt: skip


def test_a_judge_gives_rewards_to_the_answers_of_held_out_prompts(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_folder("llama")
    run = trained_run(tmp_path / "run", base, lora=True)
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    source = f"{tmp_path / 'judge.py'}:size"
    with pytest.raises(FunctionError, match=r"has no 'sise'; did you mean 'size'"):
        evaluate_run(run, recipe_of(tmp_path, base, lora=True), judge=Reward(function=source.replace("size", "sise")))
    assert not (run.path / "evaluation.json").exists()
    without = evaluate_run(run, recipe_of(tmp_path, base, lora=True, answered=None))
    assert without["generations"] is None, "without a judge nothing is answered unless asked for"
    result = evaluate_run(run, recipe_of(tmp_path, base, lora=True, answered=None), judge=Reward(function=source))
    assert result["settings"]["prompts"] == 4, "with one, all held-out prompts are"
    assert (result["settings"]["reward"], result["settings"]["judge"]) == ("size", source)
    lines = read_jsonl(run.path / "samples.jsonl")
    assert [line["reward"] for line in lines] == [len(line["text"]) / 10 for line in lines]
    assert result["difference"]["reward_mean"]["estimate"] == pytest.approx(
        result["generations"]["trained"]["reward_mean"] - result["generations"]["base"]["reward_mean"]
    )


def test_held_out_rows_of_the_flag_replace_the_fraction_of_the_recipe(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_folder("llama")
    values = recipe_of(tmp_path, base, lora=False).model_dump()
    values["data"] |= {"eval": None, "eval_fraction": 0.5}
    recipe = Recipe.model_validate({**values, "run_dir": str(tmp_path / "run")})
    RunDirectory(tmp_path / "run").create(recipe)
    trained_run(tmp_path / "run", base, lora=False)
    held_out = str(tmp_path / "pairs.jsonl")
    judged = evaluation_for(tmp_path / "run", Flags(data=held_out), ["data.on_bad_rows=skip"]).recipe
    assert isinstance(judged, Recipe)
    assert (judged.data.eval, judged.data.eval_fraction) == (held_out, None)
    assert judged.data.on_bad_rows == "skip", "what the error about broken rows advises is taken"
