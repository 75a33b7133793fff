"""A synthetic study's folder for the tests of its report: plausible numbers, hostile texts, no model and no torch."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ARMS = {
    "reference": ("Reference", "", []),
    "sft": ("SFT on chosen", "learning rate", ["2e-05", "0.0001", "0.0005"]),
    "dpo": ("DPO", "β", ["0.03", "0.1", "0.3"]),
    "tdpo1": ("TDPO1", "β", ["0.03", "0.1", "0.3"]),
    "tdpo2": ("TDPO2", "β", ["0.03", "0.1", "0.3"]),
    "ppo_reverse": ("PPO (reverse KL)", "KL coefficient", ["0.02", "0.1", "0.5"]),
    "ppo_reverse_exact": ("PPO (exact reverse KL)", "KL coefficient", ["0.02", "0.1", "0.5"]),
    "ppo_forward": ("PPO (forward KL)", "KL coefficient", ["0.02", "0.1", "0.5"]),
}
TASKS: list[dict[str, Any]] = [
    {"name": "keywords", "description": "Write one sentence that uses the given words.", "modes": [],
     "reward": "share of keywords used", "threshold": 0.7, "kind": "environment", "max_new_tokens": 32},
    {"name": "sentiment", "description": "Describe something ordinary, warmly.", "modes": [],
     "reward": "VADER compound", "threshold": 0.5, "kind": "environment", "max_new_tokens": 40},
    {"name": "colours", "description": "Name a colour; five answers are right.", "threshold": 0.5,
     "reward": "1 for a right answer", "modes": ["red", "green", "blue", "yellow", "violet"],
     "kind": "environment", "max_new_tokens": 4},
]  # fmt: skip
# How much reward an arm buys with a nat, how diverse it stays, forward over reverse KL.
CHARACTER = {
    "sft": (0.17, 0.9, 1.1), "dpo": (0.23, 1.25, 1.9), "tdpo1": (0.24, 1.1, 1.5), "tdpo2": (0.26, 0.8, 0.9),
    "ppo_reverse": (0.27, 1.3, 2.3), "ppo_reverse_exact": (0.28, 1.2, 2.1), "ppo_forward": (0.25, 0.75, 0.8),
}  # fmt: skip
HOSTILE = (
    "</script><img src=x onerror=window.__pwned=1>",
    "<!--<script>--> \u2028 {{ 7 * 7 }} %{x}",
    "🌈👩‍👩‍👧‍👦 what a day, e\u0301te\u0301",
    "שלום עולם, هذا نص من اليمين إلى اليسار",
    "",
    "unbreakable" * 20,
    "lone \ud800 surrogate",
)
WORDS = ("morning", "river", "bright", "lantern", "quiet", "garden", "letter", "warm", "station", "lovely", "window")
DIVERSITY = ("embedding_diversity", "ead", "distinct_1", "distinct_2", "self_bleu", "vendi")
PER_PROMPT = ("reward_mean", "forward_kl", "reverse_kl", *DIVERSITY)


def make_study(path: Path, *, prompts: int = 24, samples: int = 4, words: int = 14, seed: int = 0) -> Path:
    """Write the folder of a finished study of three tasks, eight arms and two seeds, one cell of which failed."""
    rng = random.Random(f"study {seed}")
    path.mkdir(parents=True, exist_ok=True)
    tasks = [{**task, "prompts": prompts, "samples_per_prompt": samples} for task in TASKS]
    results, curves, responses, by_prompt = [], [], [], []
    for number, task in enumerate(tasks):
        for arm, strength, rank in _settings():
            failed = (task["name"], arm, strength) == ("keywords", "dpo", "0.03")
            seeds = [2] if failed else [1, 2]
            truth = _truth(task, number, arm, rank)
            for cell_seed in seeds:
                own = {k: v * (1 + rng.gauss(0, 0.03)) for k, v in truth.items()}
                where = [task["name"], arm, strength, str(cell_seed)]
                results += _lines(where, own, 0.06)
                results += [[*where, k, v, "", ""] for k, v in _cost(arm, rank, rng).items()]
                by_prompt += [
                    [*where, f"{task['name']}-{p}", k, own[k]] for p in range(prompts) for k in PER_PROMPT if k in own
                ]
                responses += _responses(where, task, own, prompts, samples, words, rng)
                curves += [] if arm == "reference" else _curves(where, arm, truth, rng)
            results += _lines([task["name"], arm, strength, "all"], truth, 0.05)
    _csv(path / "results.csv", "task,arm,strength,seed,metric,value,low,high", results)
    _csv(path / "prompts.csv", "task,arm,strength,seed,prompt_id,metric,value", by_prompt)
    _csv(path / "responses.csv", "task,arm,strength,seed,prompt_id,prompt,sample,text,reward,tokens,finished,"
         "reverse_kl,mode", responses)  # fmt: skip
    _csv(path / "curves.csv", "task,arm,strength,seed,step,completions,metric,value", curves)
    write(path / "about.json", about(tasks))
    write(path / "claims.json", claims())
    (path / "study.yaml").write_text("tasks: [keywords, sentiment, colours]\nseeds: [1, 2]\n", encoding="utf-8")
    return path


def _settings() -> Iterable[tuple[str, str, float]]:
    """(arm, strength, how loosely it holds: 0 for the reference, 1 the tightest, 3 the loosest)."""
    yield "reference", "", 0.0
    for arm, (_, kind, strengths) in ARMS.items():
        for place, strength in enumerate(strengths):
            yield arm, strength, float(place + 1 if kind == "learning rate" else len(strengths) - place)


def _truth(task: dict[str, Any], number: int, arm: str, rank: float) -> dict[str, float]:
    slope, narrowing, ratio = CHARACTER.get(arm, (0.0, 0.0, 1.0))
    reverse = 0.0 if not rank else 0.9 * 2.1 ** (rank - 1) * (1 + 0.3 * number) * (1 + slope)
    reward = 0.28 + slope * 1.25 * math.sqrt(reverse) / (1 + 0.1 * reverse)
    kept = math.exp(-narrowing * reverse / 14)
    own = {
        "reward_mean": reward, "reward_variance": 0.06 * (1 - 0.4 * reward) * kept + 0.01,
        "reverse_kl": reverse, "forward_kl": reverse * ratio,
        "reverse_kl_per_token": reverse / 24, "forward_kl_per_token": reverse * ratio / 26,
        "response_tokens": 24 - rank, "finished": 0.8 + 0.03 * rank, "policy_entropy": 2.4 * kept,
        "embedding_diversity": 0.46 * kept, "ead": 0.81 * kept, "distinct_1": 0.62 * kept, "distinct_2": 0.9 * kept,
        "self_bleu": 1 - 0.8 * kept, "vendi": 1 + 2.6 * kept,
    }  # fmt: skip
    own |= {f"across_{key}": own[key] * 1.1 for key in ("embedding_diversity", "ead", "self_bleu", "vendi")}
    own |= {f"gated_{key}": own[key] * (0.75 + 0.08 * rank) for key in ("embedding_diversity", "ead", "self_bleu")}
    own["gated_share"] = min(1.2 * reward, 0.98)
    if arm in ("dpo", "tdpo1", "tdpo2"):
        own["accuracy"] = 0.55 + 0.07 * rank
    if task["modes"]:
        own |= {"mode_coverage": 0.7 * kept, "mode_entropy": 1 + 2.5 * kept, "valid_share": min(reward * 1.2, 1.0)}
    return own


def _lines(where: list[str], values: dict[str, float], share: float) -> list[list[Any]]:
    half = {key: abs(value) * share + (0.004 if where[1] != "reference" else 0) for key, value in values.items()}
    return [
        [*where, k, v, "", ""] if k == "reward_variance" else [*where, k, v, v - half[k], v + half[k]]
        for k, v in values.items()
    ]


def _cost(arm: str, rank: float, rng: random.Random) -> dict[str, float]:
    if arm == "reference":
        return {"sampling_seconds": 14.0, "generated_tokens": 2304}
    ppo = arm.startswith("ppo")
    return {
        "scored_completions": 256, "updates": 64 if ppo else 32, "train_seconds": 30 + 8 * rng.random() + 22 * ppo,
        "sampling_seconds": 20.0 + rank, "trained_tokens": 21000, "generated_tokens": 9000,
    }  # fmt: skip


def _responses(
    where: list[str], task: dict[str, Any], own: dict[str, float], prompts: int, samples: int, words: int,
    rng: random.Random,
) -> list[list[Any]]:  # fmt: skip
    lines = []
    for prompt in range(prompts):
        question = f"{task['description']} Think of the {WORDS[prompt % len(WORDS)]}, number {prompt}."
        for sample in range(samples):
            text = " ".join(rng.choice(WORDS) for _ in range(words)) + "."
            mode = ""
            if task["modes"]:
                text = rng.choice([*task["modes"], "a colour"])
                mode = text if text in task["modes"] else ""
            if prompt == 0 and where[1] == "tdpo2":
                text = HOSTILE[(sample + 4 * (int(where[3]) - 1)) % len(HOSTILE)]
            reward = (round(min(max(rng.gauss(own["reward_mean"], 0.2), -1), 1) * 4) / 4) if prompt != 1 else ""
            kl = "" if where[1] == "reference" else max(0.0, rng.gauss(own["reverse_kl"], 0.5))
            line = [f"{task['name']}-{prompt}", question, sample, text, reward, words, int(sample != 3), kl, mode]
            lines.append([*where, *line])
    return lines


def _curves(where: list[str], arm: str, truth: dict[str, float], rng: random.Random) -> list[list[Any]]:
    lines = []
    ppo = arm.startswith("ppo")
    goals = {"reward_mean": truth["reward_mean"]} if ppo else {"accuracy": 0.7, "margin": 1.2, "loss": 0.45}
    goals |= {"forward_kl": truth["forward_kl"], "reverse_kl": truth["reverse_kl"]}
    for step in range(4, 65 if ppo else 33, 4):
        done = 1 - math.exp(-step / 20)
        for metric, goal in goals.items():
            start = {"loss": 0.69, "accuracy": 0.5, "reward_mean": 0.28}.get(metric, 0.0)
            value = start + (goal - start) * done + rng.gauss(0, 0.02)
            lines.append([*where, step, step * 4 if ppo else 256, metric, value])
    return lines


def about(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    arms = [
        {"name": name, "label": label, "strength": kind, "strengths": strengths, "what": f"What {label} learns from."}
        for name, (label, kind, strengths) in ARMS.items()
    ]
    failure = {
        "cell": "keywords/dpo-0.03-s1", "task": "keywords", "arm": "dpo", "strength": "0.03", "seed": 1,
        "stage": "training", "error": "RewardError: <b>the reward</b> of a response is NaN",
        "next": "look at the log, mend the reward and give the same command again",
        "log": "cells/keywords/dpo-0.03-s1/cell.log",
    }  # fmt: skip
    return {
        "schema": 1, "title": "study_quick", "command": "tdpo compare recipes/study_quick.yaml", "tdpo": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "memory_gib": 7.8, "gpu": None},
        "model": "smollm2-135m", "budget": 256, "seconds": 8310.0, "started": "2026-11-22T09:14:03+00:00",
        "updated": "2026-11-22T11:32:33+00:00", "tasks": tasks, "arms": arms, "seeds": [1, 2],
        "cells": {"done": 131, "failed": 1, "waiting": 0}, "failures": [failure],
    }  # fmt: skip


def claims() -> dict[str, Any]:
    def part(text: str, metric: str, value: float, verdict: str, matched: str = "reward_mean") -> dict[str, Any]:
        half = 0.012
        tasks = [
            {"task": task["name"], "value": value * f, "low": value * f - 2 * half, "high": value * f + 2 * half,
             "range": [0.35, 0.6]}
            for task, f in zip(TASKS, (0.6, 1.0, 1.4), strict=True)
        ]  # fmt: skip
        return {
            "text": text, "metric": metric, "matched": matched, "unit": "", "value": value,
            "low": value - half, "high": value + half, "verdict": verdict, "tasks": tasks,
        }  # fmt: skip

    none = {"task": "keywords", "value": None, "low": None, "high": None, "range": None}
    unknown = {"text": "TDPO2 against SFT, at matched reward", "metric": "vendi", "matched": "reward_mean", "unit": "",
               "value": None, "low": None, "high": None, "verdict": "undecided", "tasks": [none]}  # fmt: skip
    entries = [
        ("TDPO2 keeps more diversity than PPO with the reverse KL at the same reward.", "supported",
         "Diversity is higher at matched reward on all three tasks, and the interval of the mean excludes zero.",
         [part("TDPO2 against PPO (reverse KL), at matched reward", "embedding_diversity", 0.04, "supported"),
          part("The same, quality-gated", "gated_embedding_diversity", 0.031, "supported") | {"primary": False}]),
        ("DPO reaches the same reward at a lower forward KL than TDPO1.", "contradicted",
         "DPO needs more forward KL on every task, and the interval of the mean excludes zero.",
         [part("DPO against TDPO1, at matched reward", "forward_kl", -0.05, "contradicted")]),
        ("TDPO2 varies its responses more than SFT does.", "undecided",
         "The frontiers do not overlap on the only task where both were measured.",
         [part("TDPO2 against SFT, at matched reverse KL", "self_bleu", 0.006, "undecided", "reverse_kl"), unknown]),
    ]  # fmt: skip
    return {
        "schema": 1, "confidence": 0.95, "resamples": 2000, "primary_diversity": "embedding_diversity",
        "claims": [
            {"id": str(i), "text": text, "verdict": verdict, "why": why, "parts": parts}
            for i, (text, verdict, why, parts) in enumerate(entries, 1)
        ],
    }  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _csv(path: Path, heads: str, rows: Iterable[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="surrogatepass") as file:
        writer = csv.writer(file)
        writer.writerow(heads.split(","))
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows)
