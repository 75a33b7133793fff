"""Exact probabilities of known answers: against enumeration in float64, and the metrics of modes made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model, build_tokenizer
from tdpo.comparison.cell_judging import Responses, _exact_modes
from tdpo.config import PPORecipe
from tdpo.diversity import exact_mode_metrics
from tdpo.environments import Environment, Prompt
from tdpo.evaluation import answer_log_probabilities, evaluate_base, evaluate_run, metrics_of_lines
from tdpo.evaluation.baselines import evaluate_temperature
from tdpo.models import reference_for
from tdpo.records.json_files import read_jsonl
from tdpo.runs import RunDirectory
from tdpo.scoring.policy_statistics import PolicyStatistics

ANSWERS = {"cat": ("the cat", "a cat"), "dog": ("the dog",), "mat": ("a mat ran away",)}
PROMPTS = [
    Prompt("talk", [{"role": "user", "content": "what sat"}, {"role": "assistant", "content": "the mat"},
                    {"role": "user", "content": "what ran"}]),
    Prompt("plain", "what a wonderful day: "),
    Prompt("none", [{"role": "user", "content": "what"}]),
]  # fmt: skip
MODES: list[dict[str, tuple[str, ...]]] = [ANSWERS, {"cat": ("cat",), "dog": ("dog",)}, {}]


def log_probability(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> float:
    """The sum over tokens of log softmax of the divided logits, one forward for each token."""
    total = 0.0
    for at, token in enumerate(response):
        logits = model(torch.tensor([prompt + response[:at]])).logits[0, -1].double()
        total += float((logits / temperature).log_softmax(-1)[token])
    return total


@torch.no_grad()
def test_they_are_those_of_one_token_after_the_other() -> None:
    tokenizer = build_tokenizer()
    policy, base = (build_model("llama", seed=seed, dtype=torch.float64) for seed in (1, 2))
    statistics = PolicyStatistics.of(policy, reference_for(policy, base))
    found = answer_log_probabilities(policy, statistics, tokenizer, PROMPTS, MODES, batch_size=3)
    talk = tokenizer.apply_chat_template(PROMPTS[0].prompt, tokenize=False, add_generation_prompt=True)
    for model, values in ((policy, found.policy), (base, found.reference)):
        for at, start in enumerate([talk, PROMPTS[1].prompt]):
            for mode, texts in MODES[at].items():
                prompt = tokenizer(start)["input_ids"]
                # The tiny template ends a turn with <|end|>, which is the tokenizer's end of sequence as well.
                own = [log_probability(model, prompt, tokenizer(text)["input_ids"] + [1]) for text in texts]
                expected = math.log(math.fsum(map(math.exp, own)))
                assert values[at][mode] == pytest.approx(expected, abs=1e-9), (at, mode)
        assert values[2] == {}


@torch.no_grad()
def test_all_responses_of_a_length_add_up_to_what_is_not_shorter() -> None:
    """Enumeration: P(one token, then the end) over the whole vocabulary, from texts and from the model's logits."""
    tokenizer = build_tokenizer()
    policy = build_model("llama", seed=3, dtype=torch.float64)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    prompts, answers = [PROMPTS[2]], [{letter: (letter,) for letter in letters}]
    statistics = PolicyStatistics.of(policy, reference_for(policy, build_model("llama", dtype=torch.float64)))
    [found] = answer_log_probabilities(policy, statistics, tokenizer, prompts, answers, batch_size=7).policy
    text = tokenizer.apply_chat_template(PROMPTS[2].prompt, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text)["input_ids"]
    tokens = [tokenizer(letter)["input_ids"][0] for letter in letters]
    first = policy(torch.tensor([prompt])).logits[0, -1].softmax(-1)[tokens]
    after = policy(torch.tensor([[*prompt, token] for token in tokens])).logits[:, -1].softmax(-1)[:, 1]
    assert math.fsum(map(math.exp, found.values())) == pytest.approx(float((first * after).sum()), abs=1e-12)


def test_an_answer_that_is_given_twice_is_refused() -> None:
    policy = build_model("llama")
    statistics = PolicyStatistics.of(policy, reference_for(policy, build_model("llama")))
    for answers in ({"cat": ("a cat",), "dog": ("a cat",)}, {"cat": ("a cat", "a cat")}):
        with pytest.raises(ValueError, match=r"prompt 'none': an answer of mode '\w+' has the tokens of an answer of"):
            answer_log_probabilities(policy, statistics, build_tokenizer(), PROMPTS[2:], [answers])


def test_metrics_of_shares() -> None:
    logs = {name: math.log(p) for name, p in {"a": 0.3, "b": 0.15, "c": 0.04, "d": 0.01}.items()}
    found = exact_mode_metrics(logs, {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.0})
    shares = (0.6, 0.3, 0.08, 0.02)
    assert found["answer_mass"] == pytest.approx(0.5)
    assert found["exact_effective_modes"] == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares)))
    assert found["exact_mode_coverage"] == 3 / 4  # a quarter of 1/4 is 0.0625
    assert found["expected_grade"] == pytest.approx(0.6 + 0.15)
    even = exact_mode_metrics(dict.fromkeys("abc", -400.0))  # far below the smallest float32
    assert even["exact_effective_modes"] == pytest.approx(3) and even["exact_mode_coverage"] == 1
    assert "expected_grade" not in even and exact_mode_metrics({}) == {}
    lost = exact_mode_metrics({"a": -math.inf, "b": -math.inf}, {"a": 1.0, "b": 0.0})
    assert lost == {
        "answer_mass": 0,
        "exact_effective_modes": None,
        "exact_mode_coverage": None,
        "expected_grade": None,
    }


def test_numbers_that_are_no_log_probabilities_are_refused() -> None:
    for value in (math.nan, 0.5):
        with pytest.raises(ValueError, match=r"log-probability of mode 'a' is .*; expected a number of at most 0"):
            exact_mode_metrics({"a": value})
    with pytest.raises(ValueError, match=r"rewards are given for \['b'\], probabilities for \['a'\]"):
        exact_mode_metrics({"a": -1.0}, {"b": 1.0})


def length(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 10 for text in completions]


@torch.no_grad()
def test_an_evaluation_writes_them_and_a_study_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [PROMPTS[0], PROMPTS[2]]
    environment = Environment("sentiment", held_out, held_out, length, "length", 8, "a test")
    answers = {"talk": ANSWERS, "none": {}}
    knowing = replace(environment, answers_of=lambda prompt: answers[prompt.id])
    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: knowing)
    folders = {name: tmp_path / name for name in ("base", "trained")}
    for seed, folder in enumerate(folders.values()):
        build_model("llama", seed=seed).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
    values = {"name": str(folders["base"]), "dtype": "float32", "lora": None}
    recipe = PPORecipe.model_validate({
        "run_dir": str(tmp_path / "run"), "model": values, "environment": {"name": "sentiment"},
        "ppo": {"iterations": 1}, "evaluation": {"samples_per_prompt": 2, "max_new_tokens": 4},
    })  # fmt: skip
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    folders["trained"].rename(run.path / "model")
    found = evaluate_run(run, recipe)["generations"]
    lines = read_jsonl(run.path / "answers.jsonl")
    assert [(line["model"], line["mode"]) for line in lines] == [(m, k) for m in ("base", "trained") for k in ANSWERS]
    assert [line["reward"] for line in lines[:3]] == [pytest.approx(0.6), 0.7, 1.4]  # the mean over the answers
    for who in ("base", "trained"):
        of_prompts = metrics_of_lines(lines, ["talk", "none"], who)
        assert of_prompts["answer_mass"][0] == found[who]["answer_mass"] > 0 and of_prompts["answer_mass"][1] is None
        assert found[who]["answer_mass_interval"] is None, "one prompt says nothing about others"
    assert found["base"]["answer_mass"] != found["trained"]["answer_mass"]
    responses = Responses.read(run, is_reference=False)
    assert _exact_modes(run, responses, is_reference=False) == metrics_of_lines(lines, ["talk", "none"], "trained")

    alone = RunDirectory(tmp_path / "alone")
    alone.path.mkdir()
    evaluate_base(alone, recipe)
    of_base = read_jsonl(alone.path / "answers.jsonl")
    assert [line["model"] for line in of_base] == ["base"] * 3
    assert [line["log_probability"] for line in of_base] == [
        pytest.approx(line["log_probability"], abs=1e-5) for line in lines[:3]
    ]

    evaluate_temperature(alone, recipe, 0.5, base_from=alone)
    cold = read_jsonl(alone.path / "answers.jsonl")
    assert cold[:3] == of_base and [line["model"] for line in cold[3:]] == ["trained"] * 3
    tokenizer, base = build_tokenizer(), build_model("llama", seed=0)
    talk = tokenizer(tokenizer.apply_chat_template(PROMPTS[0].prompt, tokenize=False, add_generation_prompt=True))
    for line, texts in zip(cold[3:], ANSWERS.values(), strict=True):
        own = [log_probability(base, talk["input_ids"], tokenizer(text)["input_ids"] + [1], 0.5) for text in texts]
        assert line["log_probability"] == pytest.approx(math.log(math.fsum(map(math.exp, own))), abs=1e-3)

    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: environment)
    assert "answer_mass" not in evaluate_run(run, recipe)["generations"]["base"]
    assert not (run.path / "answers.jsonl").exists(), "of another environment"
    assert _exact_modes(run, responses, is_reference=False) == {}
