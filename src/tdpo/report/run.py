"""A run as the report sees it: what its files hold, and what follows from them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..methods import METHODS, public_name
from ..records.dotted import at, dict_at, text_at
from ..records.names import RECIPE_FILE
from .numbers import number


@dataclass(frozen=True)
class Run:
    """One run directory. A file that is missing or broken leaves an empty value here and a sentence in `notes`."""

    path: Path
    label: str
    index: int
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    recipe_file: str = RECIPE_FILE
    best: dict[str, Any] = field(default_factory=dict)  # which update the model is of, if it is not the last one
    machine: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def loss(self) -> str:
        """The method by its public name (TDPO2, PPO), as evaluation or recipe state it; "" if neither does."""
        name = text_at(self.evaluation, "run", "loss") or text_at(self.recipe, "loss", "name")
        if not name and "ppo" in self.recipe:
            name = "ppo"
        return public_name(name)

    @property
    def is_ppo(self) -> bool:
        """Whether the run learned from rewards of its own responses, and not from pairs."""
        return self.loss == METHODS["ppo"].name

    @property
    def on_own_pairs(self) -> bool:
        """Whether the run learned from pairs of its own responses."""
        return "online" in self.recipe

    @property
    def reference_moves(self) -> bool:
        """Whether the reference followed the policy in training, so that its KLs are not to the start."""
        return at(self.recipe, "online", "reference_update") is not None

    @property
    def on_own_responses(self) -> bool:
        """Whether the run drew what it learned from itself, by PPO or in pairs, and so had no pairs of a file."""
        return self.is_ppo or self.on_own_pairs

    @property
    def has_reward(self) -> bool:
        """Whether something judged its responses: the reward that it learned from, an environment's, or a judge's."""
        means = (at(self.evaluation, "generations", who, "reward_mean") for who in ("base", "trained"))
        judged = any(value is not None for value in means)
        learned = self.is_ppo or bool(self.on_own_pairs and self.series("train", "reward_mean"))
        return learned or judged or any(sample.get("reward") is not None for sample in self.samples)

    @property
    def kl(self) -> dict[str, Any]:
        """How PPO was held to the reference, as recipe or evaluation state it."""
        return dict_at(self.recipe, "kl") or dict_at(self.evaluation, "run", "kl")

    @property
    def going_on(self) -> str:
        """The command that goes on with a recipe's training."""
        return f"tdpo {'ppo' if self.is_ppo else 'train'} {shlex.quote(str(self.path))} --resume"

    @property
    def model(self) -> str:
        return text_at(self.evaluation, "run", "model") or text_at(self.recipe, "model", "name")

    def series(self, split: str, key: str) -> list[tuple[float, float | None]]:
        """(step, value) of every logged line that has `key`, by step; a value that is not finite becomes None."""
        points: dict[float, float | None] = {}  # a resumed run may log a step again: the later line counts
        for line in self.metrics:
            step = number(line.get("step"))
            if line.get("split", "train") == split and step is not None and line.get(key) is not None:
                points[step] = number(line[key])
        return sorted(points.items())
