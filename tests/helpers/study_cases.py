"""A small study on a tiny model: an environment of files and functions, rows without a reward, five arms, baselines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import plain_rows
from helpers.warm_processes import WarmProcess
from tdpo.config import Study, load_study

# The reward and the modes are of the response's first letter, which a random model's text varies in. A file beside them
# makes it fail, for as long as it is there.
FUNCTIONS = """
from pathlib import Path

def reward(prompts, completions, **columns):
    trap = Path(__file__).with_name("trap")
    if trap.exists() and trap.read_text() in str(prompts[0]):
        raise RuntimeError("the reward fell into a trap")
    return [sum(map(str.isalpha, text)) / 10 for text in completions]

def mode(prompt, completion, modes, **columns):
    first = completion.strip()[:1].lower()
    return "vowel" if first in "aeiou" and first else "consonant" if first.isalpha() else None
"""
MODULE = "tdpo.cli.main"
TABLES = ("results.csv", "prompts.csv", "responses.csv", "curves.csv", "claims.json")


def write_study(folder: Path, **changes: Any) -> Path:
    """Everything that a study needs, and its YAML file, in `folder`; small enough to run in seconds.

    `changes` are other values for its keys; None leaves a key out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    build_model("llama").save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    (folder / "mine.py").write_text(FUNCTIONS, encoding="utf-8")
    modes = ["vowel", "consonant"]
    for name, count in (("train", 4), ("held_out", 3)):
        rows = [{"prompt": f"{name} {i}", "modes": modes} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_rows(8)))
    environment = {
        "prompts": str(folder / "train.jsonl"), "held_out": str(folder / "held_out.jsonl"),
        "reward": f"{folder / 'mine.py'}:reward", "mode_of": f"{folder / 'mine.py'}:mode", "max_new_tokens": 6,
        "threshold": 0.3,
    }  # fmt: skip
    study: dict[str, Any] = {
        "study_dir": str(folder / "study"),
        "seeds": [0],
        "budget": 16,
        "model": {"name": str(folder / "model"), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": [
            {"name": "letters", "environment": environment},
            {"name": "rows", "data": {"train": str(folder / "rows.jsonl"), "eval_fraction": 0.25}},
        ],
        "arms": [
            {"name": "sft", "strengths": [1e-3]},
            {"name": "tdpo2", "strengths": [0.1, 0.5]},
            {"name": "online_dpo_reverse", "targets": [0.5]},
            {"name": "ppo_reverse", "strengths": [0.1]},
            {"name": "ppo_forward", "targets": [0.5]},
        ],
        "target_direction": "reverse",
        "best_of": [2],
        "temperatures": [0.5],
        "sampling": {"samples_per_prompt": 4},
        "training": {"batch_size": 4, "learning_rate": 1e-2, "save_steps": 1},
        "rollouts": {"completions": 8, "samples_per_prompt": 2},
        "online": {"passes": 2, "minibatch_size": 4, "learning_rate": 1e-2},
        "ppo": {"epochs": 2, "minibatch_size": 8, "learning_rate": 1e-2},
        "evaluation": {"samples_per_prompt": 3, "max_prompts": 3, "max_new_tokens": 6, "kl_samples_per_prompt": 2},
        "embeddings": None,
        "workers": 2,
    }
    path = folder / "study.yaml"
    given = {key: value for key, value in {**study, **changes}.items() if key not in changes or value is not None}
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return path


def read(path: Path, *overrides: str) -> Study:
    return load_study(path, overrides)


def start(path: Path, *overrides: str) -> WarmProcess:
    """`tdpo compare` as a user starts it, in a process that is spared the import of the large libraries."""
    return WarmProcess(MODULE, "compare", str(path), *overrides, environment=_environment(), stderr=subprocess.STDOUT)


def start_from_nothing(path: Path, *overrides: str) -> subprocess.Popen[str]:
    """The same in an interpreter of its own, which takes seconds to load them."""
    command = [sys.executable, "-m", MODULE, "compare", str(path), *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(),
        start_new_session=True,
        # Test runners ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def tables(folder: Path) -> dict[str, bytes]:
    """What a study found, byte by byte; seconds are not in it."""
    return {name: (folder / name).read_bytes() for name in TABLES}
