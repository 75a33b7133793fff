"""Whole runs on a tiny model, in a run directory: their inputs, their recipes, and how they are started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from helpers.training_cases import plain_rows
from tdpo.config import AnyRecipe, PPORecipe, Recipe, load_recipe
from tdpo.runs import RunDirectory
from tdpo.workflows.ppo import train_ppo
from tdpo.workflows.train import train

REWARD = """
def letters(prompts, completions, **columns):
    return [sum(map(str.isalpha, text)) / 10 for text in completions]
"""


def write_inputs(folder: Path, base: Path) -> Path:
    """A model (a copy of `base`), rows, prompts and a reward of one's own, in `folder`."""
    shutil.copytree(base, folder / "base")
    write_rows(folder / "pairs.jsonl", plain_rows(6))
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {word}"} for word in ("one", "two", "three", "four")])
    (folder / "mine.py").write_text(REWARD)
    return folder


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_in(folder: Path, *overrides: str) -> Recipe:
    training = {
        "batch_size": 3, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "scheduler": "constant",
        "reference": "model", "prefix_sharing": "off",
    }  # fmt: skip
    recipe = load_recipe(
        {
            "run_dir": str(folder / "run"),
            "model": {"name": str(folder / "base"), "dtype": "float32", "lora": {"rank": 2}},
            "data": {"train": str(folder / "pairs.jsonl")},
            "training": training,
        },
        overrides,
    )
    assert isinstance(recipe, Recipe)
    return recipe


def ppo_recipe_in(folder: Path, *overrides: str) -> PPORecipe:
    recipe = load_recipe(
        {
            "run_dir": str(folder / "run"),
            "model": {"name": str(folder / "base"), "dtype": "float32", "lora": {"rank": 2}},
            "environment": {
                "prompts": str(folder / "prompts.jsonl"), "reward": f"{folder / 'mine.py'}:letters",
                "max_new_tokens": 4,
            },
            "rollouts": {"completions": 4, "samples_per_prompt": 2},
            "ppo": {"iterations": 2, "epochs": 1, "minibatch_size": 4, "save_every": 1, "scheduler": "constant"},
        },
        overrides,
    )  # fmt: skip
    assert isinstance(recipe, PPORecipe)
    return recipe


def go(
    recipe: AnyRecipe, *, resume: bool = False, overwrite: bool = False, say: Any = print, **how: Any
) -> RunDirectory:
    """As `tdpo train` and `tdpo ppo` do, without the bar."""
    with RunDirectory.training(recipe, resume=resume, overwrite=overwrite) as run:
        if isinstance(recipe, PPORecipe):
            train_ppo(recipe, run, resume=resume, say=say, **how)
        else:
            train(recipe, run, resume=resume, say=say, **how)
    return run
