"""What a page reads besides the answers of a study: python docs/study/readings.py docs/study/two_cores

Prints in Markdown contrasts that nobody asked beforehand, with the intervals of `tdpo.comparison.two_way` and every
seed, at each target and between the targets; the rewards of the last quarter of training; and the half-width of a main
effect with more seeds.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np

from tdpo.comparison.expected_widths import Design, pair_components, planned_half_width
from tdpo.comparison.prompt_table import PromptTable, read_prompt_table
from tdpo.comparison.two_way import two_way_mean
from tdpo.records.study_tables import read_curves

DIRECTION = {"online_dpo_forward": 0.5, "ppo_forward": 0.5, "online_dpo_reverse": -0.5, "ppo_reverse_exact": -0.5}
FACTORIAL = dict.fromkeys(DIRECTION, 0.25)
MINUS_FACTORIAL = dict.fromkeys(DIRECTION, -0.25)
TDPO2 = {"tdpo2": 1.0, **MINUS_FACTORIAL}
DIVERSITY = "gated_embedding_diversity"
READINGS = {
    "direction, forward KL": (DIRECTION, "forward_kl"),
    "direction with rewards, diversity": ({"ppo_forward": 1.0, "ppo_reverse_exact": -1.0}, DIVERSITY),
    "direction with pairs, diversity": ({"online_dpo_forward": 1.0, "online_dpo_reverse": -1.0}, DIVERSITY),
    "PPO as everybody runs it − the factorial, diversity": ({"ppo_reverse": 1.0, **MINUS_FACTORIAL}, DIVERSITY),
    "TDPO2 − the factorial, diversity": (TDPO2, DIVERSITY),
    "TDPO2 − the factorial, reward": (TDPO2, "reward_mean"),
    "TDPO2 − the factorial, reverse KL": (TDPO2, "reverse_kl"),
}
STEPS = {  # from one target to the next
    "the factorial, diversity": (FACTORIAL, DIVERSITY),
    "the factorial, modes": (FACTORIAL, "exact_effective_modes"),
    "the factorial, reward": (FACTORIAL, "reward_mean"),
    "direction, diversity": (DIRECTION, DIVERSITY),
    "direction, modes": (DIRECTION, "exact_effective_modes"),
}
SEEDS = (4, 6, 8, 10, 12)
MAIN_EFFECT = (0.5, 0.5, -0.5, -0.5)


def unpacked(folder: Path, name: str, into: Path) -> Path:
    """A table of the study, as it is or compressed by xz."""
    if (folder / name).exists():
        return folder / name
    (into / name).write_bytes(lzma.decompress((folder / f"{name}.xz").read_bytes()))
    return into / name


def contrast(table: PromptTable, task: str, weights: Mapping[tuple[str, str], float], metric: str) -> list[str]:
    """The difference, its 95 % interval, and its mean in every seed over the prompts that have it.

    `weights` are of (arm, target).
    """
    cells = {
        (cell.arm, cell.strength, cell.seed): table.cells[cell][metric]
        for cell in table.of(task)
        if (cell.arm, cell.strength) in weights
    }
    seeds = sorted({seed for _, _, seed in cells})
    rows = np.stack([sum(by * cells[arm, at, seed] for (arm, at), by in weights.items()) for seed in seeds])
    mean = two_way_mean(rows, [str(prompt) for prompt in range(rows.shape[1])])
    assert mean is not None
    limits = mean.interval()
    assert limits is not None
    low, high = limits
    return [f"{mean.value:+.3f}", f"[{low:+.3f}, {high:+.3f}]", ", ".join(f"{np.nanmean(row):+.3f}" for row in rows)]


def targets(table: PromptTable, task: str) -> list[str]:
    """The targets at which the arms of the factorial are held, from the smallest."""
    return sorted({cell.strength for arm in DIRECTION for cell in table.of(task, arm)}, key=float)


def print_contrasts(table: PromptTable, task: str) -> None:
    of_task = targets(table, task)
    print(f"| {task} | nats | difference | 95 % | every seed |\n|---|---|---|---|---|")
    for at in of_task:
        for name, (weights, metric) in READINGS.items():
            numbers = contrast(table, task, {(arm, at): by for arm, by in weights.items()}, metric)
            print(f"| {name} | {at} | {' | '.join(numbers)} |")
    for low, high in pairwise(of_task):
        for name, (weights, metric) in STEPS.items():
            both = {(arm, at): by * sign for arm, by in weights.items() for at, sign in ((low, -1), (high, 1))}
            print(f"| {name} | {low} to {high} | {' | '.join(contrast(table, task, both, metric))} |")


def trained_rewards(curves: Path) -> dict[tuple[str, str], list[float]]:
    """By arm and target, the mean reward of each seed's responses in the last quarter of its training."""
    points: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for row in read_curves(curves):
        if row.metric == "reward_mean" and row.value is not None:
            points[row.cell.arm, row.cell.strength, row.cell.seed].append((row.step, row.value))
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (arm, at, _), rewards in sorted(points.items()):
        last = sorted(rewards)[-(len(rewards) // 4) :]
        found[arm, at].append(fmean(value for _, value in last))
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        table = read_prompt_table(unpacked(folder, "prompts.csv", Path(scratch)))
        rewards = trained_rewards(unpacked(folder, "curves.csv", Path(scratch)))
    for task in table.tasks():
        print_contrasts(table, task)
        parts = pair_components(table, task, DIVERSITY)
        assert parts is not None
        themes = len(table.cells[table.of(task)[0]]["reward_mean"])  # each prompt is a theme of its own
        print("\n| seeds | half-width of a main effect, diversity, at the highest target |\n|---|---|")
        for seeds in SEEDS:
            width = planned_half_width(*parts, 16, Design(seeds, themes), MAIN_EFFECT)
            print(f"| {seeds} | ±{width:.3f} |")
    print("\n| arm | target | reward in the last quarter of training, every seed |\n|---|---|---|")
    for (arm, at), values in rewards.items():
        print(f"| {arm} | {at} | {', '.join(f'{value:.2f}' for value in values)} |")


if __name__ == "__main__":
    main()
