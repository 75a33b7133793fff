"""A run on a base in four bits, by commands: it is trained, judged, asked and merged as the model that it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from helpers.run_cases import write_inputs, write_rows
from tdpo.models import load_causal_lm, quantization_config
from tdpo.records.json_files import read_json, read_jsonl
from tdpo.sampling.sampler import SamplingSettings, sample

Call = Callable[..., Result]
PROMPTS = ["say one", "say two", "the cat", "what a wonderful day"]
FOUR_BITS = SimpleNamespace(bits=4, type=None, nested=None)
GREEDY = SamplingSettings(max_new_tokens=8, temperature=0.0)


def test_a_run_in_four_bits_by_commands(
    call: Call, tmp_path: Path, tiny_folder: Callable[[str], Path], tokenizer: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    write_inputs(tmp_path, tiny_folder("llama"))
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": "say five"}, {"prompt": "say six"}])
    recipe = {
        "run_dir": "run",
        "model": {"name": "base", "quantization": {"bits": 4}, "lora": {"rank": 4}},
        "data": {"train": "pairs.jsonl"},
        "environment": {
            "prompts": "prompts.jsonl", "held_out": "held_out.jsonl", "reward": "mine.py:letters", "max_new_tokens": 6,
        },
        "training": {"batch_size": 6, "max_steps": 3, "learning_rate": 0.02, "scheduler": "constant"},
        "evaluation": {"samples_per_prompt": 2, "seed": 5},
    }  # fmt: skip
    Path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    trained = call("train", "recipe.yaml")
    assert trained.exit_code == 0, trained.output
    steps = [line for line in read_jsonl(Path("run/metrics.jsonl")) if "chosen_forward_kl" in line]
    assert steps[0]["chosen_forward_kl"] == pytest.approx(0.0, abs=1e-9) and steps[-1]["chosen_forward_kl"] > 1e-3

    quantised = load_causal_lm("base", quantization=quantization_config(FOUR_BITS))
    plain = load_causal_lm("base")
    judged = call("evaluate", "run")
    assert judged.exit_code == 0, judged.output
    made = read_json(Path("run/evaluation.json"))["generations"]
    assert made["base"]["reverse_kl"] == 0.0 and made["trained"]["reverse_kl"] > 1e-3 < made["trained"]["forward_kl"]
    drawing = SamplingSettings(num_samples=2, max_new_tokens=6, seed=5)
    of_base = [line["text"] for line in read_jsonl(Path("run/samples.jsonl")) if line["model"] == "base"]
    answers = [[r.text for r in sample(m, tokenizer, ["say five", "say six"], drawing)] for m in (quantised, plain)]
    assert of_base == answers[0] != answers[1], "the base is the quantised one"

    Path("asked.txt").write_text("\n".join(PROMPTS), encoding="utf-8")

    def greedy(*arguments: str) -> dict[str | None, list[str]]:
        how = ("--raw", "--temperature", "0", "--max-new-tokens", "8", "--json")
        done = call("generate", *arguments, "-f", "asked.txt", *how)
        assert done.exit_code == 0, done.output
        said: dict[str | None, list[str]] = {}
        for entry in map(json.loads, done.stdout.splitlines()):
            said.setdefault(entry.get("model"), []).append(entry["text"])
        return said

    def texts(model: Any) -> list[str]:
        return [response.text for response in sample(model, tokenizer, PROMPTS, GREEDY)]

    both = greedy("run", "--base")
    assert both["base"] == texts(quantised) != texts(plain)
    assert both["trained"] == texts(load_causal_lm("run/model")) != both["base"]
    merged = call("merge", "run", "merged")
    assert merged.exit_code == 0 and "base in 4 bits" in " ".join(merged.output.split()), merged.output
    # In float32 both round alike, to 1e-5 of the largest logit (tests/models/test_quantization.py).
    [of_merged] = greedy("merged").values()
    assert of_merged == both["trained"]
