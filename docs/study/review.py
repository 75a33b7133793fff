"""What the study's own numbers say about its verdict on claim 1: python docs/study/review.py

Reads prompts.csv of this folder. For each primary comparison of claim 1 it prints which share of the matched grid lies
on a line from the reference to an arm's first trained point; the gap with lines straight in √KL, as it was judged, and
straight in the KL; and the same gap for diversity among responses above the threshold of the reward. Then it prints how
far the strengths moved the KL, and which prompts were trained and judged on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tdpo.comparison.cell_statistics import Draws, TaskResamples, interval, same_but_for_the_seed
from tdpo.comparison.frontiers import GRID, KLS, Frontier, arm_frontier, gap
from tdpo.comparison.prompt_table import read_prompt_table
from tdpo.environments import load_environment

HERE = Path(__file__).parent
SEEDS = (0, 1)
OTHERS = ("ppo_reverse", "dpo")
ARMS = ("sft", "dpo", "tdpo1", "tdpo2", "ppo_reverse", "ppo_forward")
TRAINED_PROMPTS = 8  # budget 48 with six samples of a prompt


def frontiers(draws: TaskResamples, other: str, matched: str, metric: str) -> tuple[Frontier, Frontier]:
    pair = [arm_frontier(draws, arm, matched, metric, SEEDS) for arm in ("tdpo2", other)]
    assert pair[0] is not None and pair[1] is not None
    return pair[0], pair[1]


def untrained_share(first: Frontier, second: Frontier) -> float | None:
    """The share of the grid that lies below the first trained point of at least one arm; estimates only."""
    common = gap(first, second)
    if np.isnan(common.mean[0]):
        return None
    grid = np.linspace(common.low[0], common.high[0], GRID)
    first_points = [np.sort(f.x[1:, 0][f.x[1:, 0] > f.x[0, 0]])[0] for f in (first, second)]
    return float((grid < max(first_points)).mean())


def straight_in_kl(frontier: Frontier) -> Frontier:
    assert frontier.start is not None
    return replace(frontier, x=frontier.x**2, start=frontier.start**2)


def shown(gaps: list[Draws]) -> str:
    mean = np.mean(gaps, axis=0)
    low, high = interval(mean)
    return f"{mean[0]:+.3f} " + ("[no interval]" if low is None else f"[{low:+.3f}, {high:+.3f}]")


def compare(tasks: list[TaskResamples], other: str, matched: str) -> None:
    pairs = [frontiers(draws, other, matched, "embedding_diversity") for draws in tasks]
    gated = [frontiers(draws, other, matched, "gated_embedding_diversity") for draws in tasks]
    shares = [untrained_share(*pair) for pair in pairs]
    named = zip(tasks, shares, strict=True)
    text = ", ".join(f"{draws.task} " + ("–" if s is None else f"{s:.0%}") for draws, s in named)
    print(f"TDPO2 against {other}, at matched {matched}")
    print(f"  of the grid below an arm's first trained point: {text}")
    print(f"  embedding diversity, as judged:          {shown([gap(*pair).mean for pair in pairs])}")
    if matched in KLS:
        straight = [gap(*map(straight_in_kl, pair)).mean for pair in pairs]
        print(f"  the same, lines straight in the KL:      {shown(straight)}")
    print(f"  among responses above the threshold:     {shown([gap(*pair).mean for pair in gated])}")


def moved(draws: TaskResamples) -> None:
    """The forward KL of each arm over its strengths, and the largest over the smallest."""
    for arm in ARMS:
        groups = same_but_for_the_seed(draws.table.of(draws.task, arm))
        kls = [float(values[0]) for g in groups if (values := draws.over_seeds(g, "forward_kl", SEEDS)) is not None]
        print(f"  {arm:12} {', '.join(f'{kl:.2f}' for kl in kls)}   factor {max(kls) / min(kls):.1f}")


def prompts(draws: TaskResamples) -> None:
    environment = load_environment(draws.task)
    judged = draws.table.prompts[draws.task]
    themes = sorted({name.rsplit("-", 1)[0] for name in judged})
    print(f"  trained: pairs on the first {TRAINED_PROMPTS} of {len(environment.train)} prompts, PPO on draws from all")
    print(f"  judged: {len(judged)} prompts, named after {', '.join(themes)}")


def main() -> None:
    table = read_prompt_table(HERE / "prompts.csv")
    tasks = [TaskResamples(table, task) for task in table.tasks()]
    for other in OTHERS:
        for matched in ("reward_mean", *KLS):
            compare(tasks, other, matched)
    for draws in tasks:
        print(f"\n{draws.task}: forward KL, nats a response, over the strengths")
        moved(draws)
        prompts(draws)


if __name__ == "__main__":
    main()
