"""Synthetic studies whose arms are held at targets, with a known truth: seeds, themes and the rest vary as asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tdpo.comparison.contrast_tables import ContrastData
from tdpo.comparison.prompt_table import PromptTable
from tdpo.records.study_tables import CellKey

HELD = ("tdpo2", "dpo", "ppo_forward", "ppo_reverse_exact")
RESPONSES = 16


def held_study(
    diversity: Mapping[str, float] | None = None,
    *,
    tasks: Sequence[str] = ("themes",),
    targets: Sequence[float] = (3.0, 8.0),
    seeds: Sequence[int] = (0, 1, 2, 3),
    themes: int = 40,
    each: int = 1,
    seed_sd: float = 0.01,
    theme_sd: float = 0.05,
    rest_sd: float = 0.03,
    kl: Mapping[str, float] | None = None,
    other_kl: Mapping[str, float] | None = None,
    number: int = 0,
) -> ContrastData:
    """Arms at every target, `sft` at one strength, and the reference. `diversity` is added to an arm's; `kl` and
    `other_kl` multiply an arm's reverse and forward KL, which are the target itself without them."""
    random = np.random.default_rng(number)
    prompts = tuple(f"{theme}-{place}" for theme in range(themes) for place in range(each))
    theme_of = np.repeat(np.arange(themes), each)
    table = PromptTable(dict.fromkeys(tasks, prompts))
    for task in tasks:
        common = random.normal(0, theme_sd, themes)
        arms = [(arm, f"{target:g}") for arm in HELD for target in targets] + [("sft", "0.0001"), ("reference", "")]
        for arm, strength in arms:
            own_of_themes = random.normal(0, theme_sd, themes)
            for seed in seeds:
                level = 0.6 + (diversity or {}).get(arm, 0.0) + random.normal(0, seed_sd)
                values = level + (common + own_of_themes)[theme_of] + random.normal(0, rest_sd, len(prompts))
                at = float(strength) if arm in HELD else 0.0
                reward = random.normal(0.5, 0.1, len(prompts))
                table.cells[CellKey(task, arm, strength, seed)] = {
                    "embedding_diversity": values,
                    "gated_embedding_diversity": values,
                    "reward_mean": reward,
                    "reward_square": reward**2 + 0.04,
                    "reverse_kl": np.full(len(prompts), at * (kl or {}).get(arm, 1.0)),
                    "forward_kl": np.full(len(prompts), at * (other_kl or {}).get(arm, 1.0)),
                }
    clusters = {task: dict(zip(prompts, (f"theme {t}" for t in theme_of), strict=True)) for task in tasks}
    return ContrastData(table, frozenset(HELD), RESPONSES, clusters)
