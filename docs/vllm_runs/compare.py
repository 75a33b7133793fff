"""The same pairs and the same short PPO run with both engines: python docs/vllm_runs/compare.py URL [--quick]

URL is a vLLM server with the bundled model (docs/vllm.md). Written to docs/vllm_runs/results.json: command, versions,
settings, and of each engine the rewards of every prompt, what PPO logged, and the seconds. The trained policies are
sampled by the built-in sampler with one seed, so that the engine differs in training alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig

from tdpo.config import SamplingEngine
from tdpo.environments import Environment, score
from tdpo.environments.sentiment import sentiment_environment
from tdpo.evaluation.intervals import interval, mean
from tdpo.models import bundled_folder, load_causal_lm, load_tokenizer
from tdpo.runs import versions
from tdpo.sampling.engines import ResponseSampler, response_sampler
from tdpo.sampling.sampler import SamplingSettings, sample
from tdpo.training import PPOConfig, PPOTrainer

RESULTS = Path(__file__).with_name("results.json")
QUICK = "--quick" in sys.argv
PROMPTS, HELD_OUT, SAMPLES, TOKENS, ITERATIONS = (2, 2, 2, 4, 1) if QUICK else (16, 16, 2, 12, 2)
SEED = 3
NUMBERS = (
    "reward_mean", "reverse_kl", "sampler_kl", "sampler_ratio_mean", "sampler_ratio_max",
    "sampler_logp_difference_max", "truncated_share", "generation_seconds", "judging_seconds", "learning_seconds",
)  # fmt: skip


def rewards_of(environment: Environment, prompts: Any, responses: Any) -> dict[str, Any]:
    """The mean reward with its 95 % interval over prompts, and the rewards `[prompts, samples]`."""
    values = score(environment, [prompts[r.prompt_index] for r in responses], [r.text for r in responses])
    table = np.asarray(values).reshape(len(prompts), -1)
    return {"reward_mean": float(table.mean()), "interval": interval(table, mean), "rewards": table.tolist()}


def sampled(engine: SamplingEngine, folder: Path) -> dict[str, Any]:
    """What the base model says to the training prompts, and how far the server's log-probabilities are from ours."""
    environment = sentiment_environment()
    prompts = environment.train[:PROMPTS]
    model, tokenizer = load_causal_lm(str(bundled_folder()), dtype="float32"), load_tokenizer(str(bundled_folder()))
    sampler: ResponseSampler = response_sampler(engine, folder=folder, owner=str(folder), with_logps=True)
    settings = SamplingSettings(SAMPLES, TOKENS, seed=SEED, batch_size=16)
    texts = [prompt.rendered_from for prompt in prompts]
    sampler.prepare(model, tokenizer, [1], settings)
    started = time.monotonic()
    responses = sampler(model, tokenizer, texts, settings)
    return {"seconds": time.monotonic() - started, **rewards_of(environment, prompts, responses)}


def trained(engine: SamplingEngine, folder: Path) -> dict[str, Any]:
    """A PPO run with adapters, then what the built-in sampler draws from its policy."""
    environment = sentiment_environment()
    tokenizer = load_tokenizer(str(bundled_folder()))
    server = {"sampling_engine": "vllm", "sampling_url": engine.url, "importance_weight_cap": 2.0}
    trainer = PPOTrainer(
        load_causal_lm(str(bundled_folder()), dtype="float32"),
        lambda prompts, completions, **_: score(environment, environment.train[: len(completions)], completions),
        PPOConfig(
            output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, seed=SEED,
            iterations=ITERATIONS, completions=2 * SAMPLES if QUICK else 8, samples_per_prompt=SAMPLES,
            max_new_tokens=TOKENS, ppo_epochs=1, per_device_train_batch_size=2 * SAMPLES, precision="float32",
            gradient_accumulation_steps=1 if QUICK else 2, learning_rate=5e-4, rollout_batch_size=16,
            **(server if engine.is_server else {}),
        ),
        environment.train[:PROMPTS],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    trainer.sampler.close()
    logged = [{k: line[k] for k in NUMBERS if k in line} for line in trainer.state.log_history if "reverse_kl" in line]
    prompts = environment.held_out[:HELD_OUT]
    settings = SamplingSettings(SAMPLES, TOKENS, seed=SEED)
    responses = sample(trainer.model, tokenizer, [prompt.rendered_from for prompt in prompts], settings)
    return {"seconds": seconds, "iterations": logged, "held_out": rewards_of(environment, prompts, responses)}


def main() -> None:
    """Both engines, one after the other."""
    torch.set_num_threads(1)
    engines = {"built-in": SamplingEngine(), "vllm": SamplingEngine(engine="vllm", url=sys.argv[1])}
    result: dict[str, Any] = {"command": f"python docs/vllm_runs/compare.py URL{' --quick' * QUICK}"}
    result["versions"] = {**versions(), "vllm": "0.32.0, CPU build"}
    result["settings"] = {
        "prompts": PROMPTS, "held_out": HELD_OUT, "samples": SAMPLES, "new_tokens": TOKENS, "iterations": ITERATIONS,
        "seed": SEED, "dtype": "float32",
    }  # fmt: skip
    for kind, measure in (("sampling", sampled), ("ppo", trained)):
        for name, engine in engines.items():
            with tempfile.TemporaryDirectory() as folder:
                result.setdefault(kind, {})[name] = measure(engine, Path(folder))
            print(kind, name, json.dumps(result[kind][name])[:400], flush=True)
            if not QUICK:
                RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
