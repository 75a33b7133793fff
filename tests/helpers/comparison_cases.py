"""Synthetic studies with a known truth: prompts with effects of their own, noise per cell, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tdpo.comparison.prompt_table import PromptTable
from tdpo.records.study_tables import CellKey

# The arms that frontiers have been compared of; noise is drawn in their order.
ARMS = (
    "reference", "sft", "dpo", "tdpo1", "tdpo2", "ppo_reverse", "ppo_reverse_exact", "ppo_forward",
)  # fmt: skip
STRENGTHS = ("0.03", "0.1", "0.3", "1")
REWARD_AT = {"0.03": 0.8, "0.1": 0.7, "0.3": 0.6, "1": 0.5}  # the reference has 0.4
KL_AT = {"0.03": 12.0, "0.1": 6.0, "0.3": 3.0, "1": 1.0}
REFERENCE_SD = 0.2


def cells_of(
    tasks: Sequence[str], arms: Iterable[str], strengths: Sequence[str] = STRENGTHS, seeds: Sequence[int] = (1, 2)
) -> list[CellKey]:
    return [
        CellKey(task, arm, strength, seed)
        for task in tasks
        for arm in arms
        for strength in ([""] if arm == "reference" else strengths)
        for seed in seeds
    ]


def study(
    tasks: Sequence[str] = ("keywords", "imdb"),
    arms: Iterable[str] = ARMS,
    *,
    seeds: Sequence[int] = (1, 2),
    prompts: int = 40,
    noise: float = 0.02,
    seed_noise: float = 0.0,
    diversity: Mapping[str, float] | None = None,
    reward: Mapping[str, float] | None = None,
    spread: Mapping[str, float] | None = None,
    modes: Mapping[str, float] | None = None,
    number: int = 0,
    extra: Sequence[str] = (),
) -> PromptTable:
    """All arms on one frontier (diversity falls by 0.5 per unit of reward), moved where a mapping says so.

    `diversity`, `reward`, `modes`: what is added to an arm at every strength (not to the reference). `spread`: what the
    standard deviation of an arm's rewards is multiplied with. Prompt effects are shared by all cells of a task.
    """
    random = np.random.default_rng(number)
    table = PromptTable({task: tuple(str(n) for n in range(prompts)) for task in sorted(tasks)})
    for task in tasks:
        effect = {name: random.normal(0, 0.1, prompts) for name in ("reward", "diversity", "modes")}
        for cell in cells_of([task], arms, seeds=seeds):
            trained = cell.arm != "reference"
            mean = REWARD_AT[cell.strength] if trained else 0.4
            kl = KL_AT[cell.strength] if trained else 0.0
            add = {n: (m or {}).get(cell.arm, 0.0) for n, m in [("d", diversity), ("r", reward), ("m", modes)]}
            sd = REFERENCE_SD * (spread or {}).get(cell.arm, 1.0)

            def noisy(size: float = noise) -> np.ndarray:
                return random.normal(0, size, prompts) + random.normal(0, seed_noise or 1e-12)

            means = mean + add["r"] + noisy()
            scatter = random.chisquare(50, prompts) / 50 * sd**2
            table.cells[cell] = {
                "reward_mean": means,
                "reward_square": means**2 + scatter,
                "forward_kl": kl * (1 + noisy()),
                "reverse_kl": kl * (0.8 + noisy()),
                "forward_kl_tokens": random.uniform(10, 30, prompts),
                "embedding_diversity": 0.9 - 0.5 * mean + add["d"] + effect["diversity"] + noisy(),
                "self_bleu": 20 + 40 * mean - 100 * add["d"] + noisy(),
                "mode_coverage": 0.8 - 0.5 * mean + add["m"] + effect["modes"] + noisy(),
                **{name: noisy() for name in extra},
            }
    return table
