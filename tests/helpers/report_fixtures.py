"""Synthetic run directories for the tests of the report: realistic files, no model and no torch."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

TOPICS = (
    "a rainy afternoon", "the train station", "your neighbour’s cat", "a failed exam", "the first snow", "a long queue",
    "a birthday cake", "the old library", "a lost umbrella", "the new office", "a walk by the sea", "a broken bicycle",
)  # fmt: skip
ASKS = (
    "Describe {}.",
    "Tell me about {} in two sentences.",
    "What comes to mind when you think of {}?",
    "Write about {}.",
)
WARM = (
    "wonderful",
    "delightful",
    "bright",
    "full of joy",
    "charming",
    "a real pleasure",
    "warm and friendly",
    "lovely",
)
FLAT = ("ordinary", "quiet", "somewhat grey", "hard to describe", "there", "of average size", "not unusual")
COLD = ("terrible", "sad", "annoying", "a disappointment", "cold and lonely", "dreadful")

# How far each loss goes in these runs: warmth of the responses, margin, chosen and rejected KL, in the end.
CHARACTERS = {
    "tdpo2": {
        "warmth": 0.58,
        "margin": 1.6,
        "chosen_kl": 2.4,
        "rejected_kl": 4.4,
        "entropy": 2.15,
        "drop": 3.0,
    },
    "tdpo1": {
        "warmth": 0.55,
        "margin": 1.5,
        "chosen_kl": 4.9,
        "rejected_kl": 4.1,
        "entropy": 2.3,
        "drop": 4.0,
    },
    "dpo": {"warmth": 0.74, "margin": 2.6, "chosen_kl": 6.2, "rejected_kl": 8.8, "entropy": 1.7, "drop": 9.0},
    "ppo": {"warmth": 0.66, "margin": 0.0, "chosen_kl": 5.1, "rejected_kl": 0.0, "entropy": 1.9, "drop": 6.0},
}
VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "tdpo": "0.1.0",
}
HARDWARE = {"platform": "Linux x86_64", "cpu": "AMD EPYC 7B13", "cores": 2, "memory_gib": 7.8, "gpu": []}
CUT = {"truncated_rows": 2, "truncated_tokens": 41, "dropped_long_prompts": ["pairs.jsonl:17"], "dropped_identical": []}
SKIPPED = {"skipped": 3, "problems_by_reason": {"rejected is empty": 2, "chosen is rejected": 1}}
DATA = {
    "train": {"source": "pairs.jsonl", "rows": 256, **SKIPPED, **CUT},
    "eval": {"source": "pairs_held_out.jsonl", "rows": 60, "skipped": 0, "truncated_rows": 0},
}


PROMPTS = {split: {"source": "sentiment", "skipped": 0, "prompts": n} for split, n in (("train", 128), ("eval", 40))}
UPDATES = 4  # in an iteration of PPO
KL = {"direction": "reverse", "form": "sampled", "place": "reward", "controller": "adaptive", "coefficient": 0.05,
      "target": 6.0, "horizon": 500}  # fmt: skip


def make_run(
    path: Path,
    *,
    loss: str = "tdpo2",
    steps: int = 64,
    eval_every: int = 8,
    prompts: int = 40,
    samples_per_prompt: int = 4,
    seed: int = 0,
) -> Path:
    """Write a complete run directory, as `tdpo train` (or `tdpo ppo`) and `tdpo evaluate` leave it; its path.

    A run of PPO logs an iteration every four updates, and has prompts instead of pairs.
    """
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{loss} {seed}")
    write_yaml(path / "recipe.yaml", recipe(path, loss, seed))
    write_json(path / "environment.json", environment(path, loss, seed))
    if loss == "ppo":
        write_json(path / "data.json", PROMPTS)
        write_lines(path / "metrics.jsonl", ppo_metrics(steps, eval_every, rng))
        write_lines(path / "completions.jsonl", completions(steps, rng))
    else:
        write_json(path / "data.json", DATA)
        write_lines(path / "metrics.jsonl", metrics(loss, steps, eval_every, rng))
    ended = "2026-11-22T09:17:41+00:00"
    status = {"state": "finished", "step": steps, "max_steps": steps, "updated": ended, "error": None}
    write_json(path / "status.json", status)
    samples = make_samples(loss, prompts, samples_per_prompt, seed)
    write_lines(path / "samples.jsonl", samples)
    write_json(path / "evaluation.json", evaluation(loss, samples, samples_per_prompt, rng))
    return path


def unjudged(run: Path) -> Path:
    """The run directory as one trained on preferences that nothing judged: its recipe names no environment."""
    found = read_json(run / "evaluation.json")
    found["settings"] |= {"environment": "pairs_held_out.jsonl", "reward": ""}
    for numbers in found["generations"].values():
        for key in [key for key in numbers if key.startswith("reward")]:
            del numbers[key]
    write_json(run / "evaluation.json", {**found, "difference": None})
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    write_lines(run / "samples.jsonl", [{**sample, "reward": None} for sample in samples])
    named = recipe(run, found["run"]["loss"], seed=0)
    write_yaml(run / "recipe.yaml", {**named, "environment": None})
    return run


def environment(path: Path, loss: str, seed: int) -> dict[str, Any]:
    argv = ["tdpo", "train", "recipes/sentiment.yaml", f"run_dir={path}", f"loss.name={loss}"]
    if loss == "ppo":
        argv = ["tdpo", "ppo", "recipes/ppo_sentiment.yaml", f"run_dir={path}"]
    return {
        "command": " ".join(argv),
        "argv": argv,
        "started": "2026-11-22T09:14:03+00:00",
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "seed": seed,
    }


def recipe(path: Path, loss: str, seed: int) -> dict[str, Any]:
    evaluated = {"samples_per_prompt": 4, "max_new_tokens": 32, "temperature": 1.0, "seed": 1234}
    common = {
        "run_dir": str(path),
        "seed": seed,
        "model": {"name": "smollm2-135m", "dtype": "auto", "trust_remote_code": False, "reference": None,
                  "lora": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}},
    }  # fmt: skip
    if loss == "ppo":
        return {
            **common,
            "environment": {"name": "sentiment"},
            "prompts": None,
            "rewards": None,
            "kl": KL,
            "rollouts": {"completions": 64, "samples_per_prompt": 4, "max_new_tokens": 32},
            "ppo": {"iterations": 16, "epochs": 2, "minibatch_size": 32, "learning_rate": 3e-4},
            "evaluation": evaluated,
        }
    return {
        **common,
        "data": {"train": "pairs.jsonl", "eval": "pairs_held_out.jsonl", "max_length": 1024, "on_bad_rows": "skip"},
        "environment": {"name": "sentiment"},
        "loss": {"name": loss, "beta": 0.1, "alpha": 0.5 if loss == "tdpo2" else None, "label_smoothing": 0.0},
        "training": {"epochs": 4, "max_steps": None, "batch_size": 16, "learning_rate": 5e-4, "scheduler": "linear"},
        "evaluation": evaluated,
    }  # fmt: skip


def ppo_metrics(steps: int, eval_every: int, rng: random.Random) -> list[dict[str, Any]]:
    """One line an iteration, and held-out ones every two iterations."""
    lines = []
    for step in range(UPDATES, steps + 1, UPDATES):
        progress = 1 - math.exp(-3 * (step - UPDATES) / steps)
        noise = rng.gauss(0, 1)
        when = {"step": step, "epoch": step / steps, "time_s": 6.2 * step, "iteration": step // UPDATES - 1}
        lines.append({**when, "split": "train", **rolled_out(progress, noise), **learned(progress, noise)})
        if eval_every and step % eval_every == 0:
            lines.append({**when, "split": "eval", **rolled_out(0.9 * progress, 0.3 * rng.gauss(0, 1))})
    return lines


def rolled_out(progress: float, noise: float) -> dict[str, float]:
    """What is logged of responses, in training and of held-out prompts."""
    kl, std = 5.1 * progress * (1 + 0.1 * noise), 0.42 - 0.1 * progress
    return {
        "reward_mean": 0.33 + 0.33 * progress + 0.04 * noise,
        "reward_std": std,
        "reward_variance": std**2,
        "forward_kl": 1.1 * kl,
        "reverse_kl": kl,
        "kl_k1": kl + 0.2 * noise,
        "kl_k2": 1.2 * kl,
        "kl_k3": 1.05 * kl,
        "policy_entropy": 2.6 - 0.7 * progress,
        "length_mean": 29.0 + noise,
        "finished_share": 0.4 + 0.1 * progress,
    }


def learned(progress: float, noise: float) -> dict[str, float | int]:
    """What is logged of the updates of an iteration."""
    return {
        "penalized_reward_mean": 0.33 + 0.1 * progress + 0.04 * noise,
        "kl_coefficient": 0.05 * (1 + 0.2 * progress),
        "kl_target": 6.0,
        "policy_loss": -0.01 + 0.002 * noise,
        "value_loss": 0.2 - 0.1 * progress,
        "loss": 0.01,
        "approx_kl": 0.004 + 0.0005 * abs(noise),
        "ratio_mean": 1.0 + 0.001 * noise,
        "clip_fraction": 0.05 + 0.01 * abs(noise),
        "value_clip_fraction": 0.01,
        "explained_variance": 0.6 * progress,
        "skipped_updates": 0,
        "generation_tokens_per_second": 310.0 + noise,
        "learning_tokens_per_second": 640.0 + noise,
        "generation_seconds": 6.1,
        "learning_seconds": 12.4,
        "learning_rate": 3e-4,
        "grad_norm": 0.8 + 0.1 * abs(noise),
        "peak_memory_mib": 2100.0,
    }


def completions(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    """Two responses of each iteration."""
    lines = []
    for iteration in range(steps // UPDATES):
        for topic in rng.sample(TOPICS, 2):
            text, reward = response(rng, 0.33 + 0.02 * iteration)
            prompt = [{"role": "user", "content": ASKS[0].format(topic)}]
            line = {"iteration": iteration, "step": iteration * UPDATES, "prompt": prompt, "text": text}
            lines.append({**line, "reward": reward, "finished": rng.random() < 0.7})
    return lines


def metrics(loss: str, steps: int, eval_every: int, rng: random.Random) -> list[dict[str, Any]]:
    character, lines = CHARACTERS[loss], []
    for step in range(1, steps + 1):
        progress = 1 - math.exp(-3 * (step - 1) / steps)
        noise = rng.gauss(0, 1)
        machine = {
            "learning_rate": 5e-4 * (1 - step / steps),
            "grad_norm": 1.2 + 0.3 * abs(noise),
            "tokens_per_second": 640 + 20 * rng.gauss(0, 1),
            "pairs_per_second": 5.1,
            "peak_memory_mib": 1890 + 40 * progress,
        }
        when = {"step": step, "epoch": step / 16, "time_s": 3.1 * step}
        lines.append({**when, "split": "train", **logged(character, progress, noise), **machine})
        if eval_every and step % eval_every == 0:
            held_out = logged(character, 0.85 * progress, 0.15 * rng.gauss(0, 1))
            lines.append({**when, "split": "eval", **held_out})
    return lines


def logged(character: dict[str, float], progress: float, noise: float) -> dict[str, float]:
    margin = character["margin"] * progress + 0.25 * noise * progress
    chosen = -0.2 * margin
    return {
        "loss": math.log1p(math.exp(-margin)),
        "accuracy": min(1.0, max(0.0, 0.5 + 0.3 * progress + 0.06 * noise)),
        "margin": margin,
        "chosen_reward": chosen,
        "rejected_reward": chosen - margin,
        "chosen_logp": -51.0 - character["drop"] * progress + noise,
        "rejected_logp": -52.0 - 3 * character["drop"] * progress + noise,
        "chosen_forward_kl": character["chosen_kl"] * progress * (1 + 0.1 * noise),
        "rejected_forward_kl": character["rejected_kl"] * progress * (1 + 0.1 * noise),
        "chosen_reverse_kl": 0.9 * character["chosen_kl"] * progress * (1 + 0.1 * noise),
        "rejected_reverse_kl": 0.85 * character["rejected_kl"] * progress * (1 + 0.1 * noise),
        "policy_entropy": 2.6 + (character["entropy"] - 2.6) * progress + 0.04 * noise,
    }


def make_samples(loss: str, prompts: int, per_prompt: int, seed: int) -> list[dict[str, Any]]:
    """Responses of the base model, which depend on the seed only, and of the trained one."""
    character = CHARACTERS[loss]
    sources = {
        "base": (random.Random(f"base {seed}"), 0.33, 0.0),
        "trained": (random.Random(f"trained {loss} {seed}"), character["warmth"], character["chosen_kl"] + 0.6),
    }
    rows = []
    for index in range(prompts):
        prompt = ASKS[index % len(ASKS)].format(TOPICS[index // len(ASKS) % len(TOPICS)])
        prompt += "" if index < len(ASKS) * len(TOPICS) else f" (variation {index})"
        for sample in range(per_prompt):
            for model, (rng, warmth, kl) in sources.items():
                text, reward = response(rng, warmth)
                row = {"prompt_id": f"held-out-{index:03d}", "prompt": prompt, "sample_index": sample, "model": model}
                row |= {"text": text, "reward": reward, "tokens": len(text.split()) + 6, "finished": rng.random() < 0.7}
                rows.append({**row, "reverse_kl": abs(rng.gauss(kl, 0.3 * kl))})
    return rows


def response(rng: random.Random, warmth: float) -> tuple[str, float]:
    reward = max(-0.98, min(0.98, rng.gauss(warmth, 0.42)))
    words = WARM if reward > 0.3 else COLD if reward < -0.2 else FLAT
    first, second = rng.sample(words, 2)
    subject = rng.choice(("It is", "To me it feels", "Most people would call it", "Honestly, it was"))
    return f"{subject} {first}, and the people there are {second}. I remember it well.", round(reward, 4)


def evaluation(loss: str, samples: list[dict[str, Any]], per_prompt: int, rng: random.Random) -> dict[str, Any]:
    character, alpha = CHARACTERS[loss], 0.5 if loss == "tdpo2" else None
    base, trained = (mean_by_prompt(samples, model) for model in ("base", "trained"))
    changes = [after - before for before, after in zip(base, trained, strict=True)]
    settings = {"environment": "sentiment", "reward": "VADER compound", "prompts": len(base)}
    settings |= {"samples_per_prompt": per_prompt, "max_new_tokens": 32, "temperature": 1.0, "seed": 1234}
    change = {"estimate": sum(changes) / len(changes), "interval": bootstrap(changes, rng), "confidence": 0.95}
    return {
        "schema": 1,
        "settings": settings,
        "run": {
            "name": loss,
            "loss": loss,
            **({"kl": KL} if loss == "ppo" else {"beta": 0.1, "alpha": alpha}),
            "model": "smollm2-135m",
        },
        "pairs": None if loss == "ppo" else pair_numbers(character),
        "generations": {
            "base": generation_numbers(samples, "base", 0.0, 0.412, 2.6),
            "trained": generation_numbers(
                samples,
                "trained",
                character["chosen_kl"] + 0.6,
                0.412 - character["drop"] / 90,
                character["entropy"],
            ),
        },
        "difference": {"reward_mean": {**change, "method": "bootstrap over prompts, paired, 10000 resamples"}},
        "versions": VERSIONS,
        "seconds": 33.1,
    }


def pair_numbers(character: dict[str, float]) -> dict[str, Any]:
    end = logged(character, 0.82, 0.0)
    values = {key: value for key, value in end.items() if key not in ("loss", "policy_entropy")}
    for side, before in (("chosen", -51.0), ("rejected", -52.0)):
        values |= {f"{side}_reference_logp": before, f"{side}_log_ratio": end[f"{side}_logp"] - before}
    widths = {key: 0.12 * abs(value) + 0.02 for key, value in values.items()}
    intervals = {key: [value - widths[key], value + widths[key]] for key, value in values.items()}
    return {"source": "pairs_held_out.jsonl", "held_out": True, "count": 60, **values, "intervals": intervals}


def generation_numbers(
    samples: list[dict[str, Any]], model: str, kl: float, distinct: float, entropy: float
) -> dict[str, Any]:
    own = [sample for sample in samples if sample["model"] == model]
    rewards = [sample["reward"] for sample in own]
    mean, prompts = sum(rewards) / len(rewards), len(mean_by_prompt(samples, model))
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(len(rewards) - 1, 1))
    estimates = {  # value and half the width of its interval
        "reward_mean": (mean, 1.96 * std / math.sqrt(prompts)),
        "reward_std": (std, 0.03),
        "forward_kl": (1.15 * kl, 0.09 * kl),
        "reverse_kl": (kl, 0.08 * kl),
        "distinct_1": (distinct, 0.02),
        "distinct_2": (2 * distinct, 0.03),
        "policy_entropy": (entropy, 0.1),
    }
    return {
        **{key: value for key, (value, _) in estimates.items()},
        **{f"{key}_interval": [value - width, value + width] for key, (value, width) in estimates.items()},
        "reward_variance": std**2,
        "length_mean": sum(sample["tokens"] for sample in own) / len(own),
        "finished_share": sum(sample["finished"] for sample in own) / len(own),
        "count": len(own),
    }


def mean_by_prompt(samples: list[dict[str, Any]], model: str) -> list[float]:
    groups: dict[str, list[float]] = {}
    for sample in samples:
        if sample["model"] == model:
            groups.setdefault(sample["prompt_id"], []).append(sample["reward"])
    return [sum(rewards) / len(rewards) for rewards in groups.values()]


def bootstrap(values: list[float], rng: random.Random, resamples: int = 500) -> list[float]:
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    return [means[round(0.025 * (resamples - 1))], means[round(0.975 * (resamples - 1))]]


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    import yaml

    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")
