"""Print the tables of this folder's README from the runs that its commands leave.

python docs/kl_runs/tables.py runs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tdpo.evaluation.intervals import paired_difference

NAMES = {
    "kl/dpo_reverse": "DPO, reverse KL held at 3",
    "kl/dpo_forward": "DPO, forward KL held at 3",
    "kl/tdpo2_offline": "TDPO2 on the start's pairs",
    "kl/tdpo2_online": "TDPO2 on its own pairs",
    "rloo_sentiment": "RLOO, exact reverse KL",
    "ppo_sentiment": "PPO, sampled reverse KL",
    "rloo_3/evaluation": "RLOO, exact reverse KL, at 3 nats",
    "ppo_3/evaluation": "PPO, sampled reverse KL, at 3 nats",
    "kl/distilled": "distilled (compared with its teacher)",
    "kl/graded_forward_0.5_of_16": "graded, forward KL held at 0.5, 16 pairs an update",
    "kl/graded_forward_0.5": "graded, forward KL held at 0.5",
    "kl/graded_reverse_0.5": "graded, reverse KL held at 0.5",
    "kl/graded_forward_8": "graded, forward KL held at 8",
    "kl/graded_reverse_8": "graded, reverse KL held at 8",
}


def lines_of(run: Path) -> list[dict[str, Any]]:
    """What was logged in training; nothing for a scaled adapter."""
    file = run / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def number(generations: dict[str, Any], metric: str, digits: int = 2) -> str:
    low, high = generations[f"{metric}_interval"]
    return f"{generations[metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def judged(runs: Path, evaluation: str = "evaluation.json") -> None:
    """Reward, both KLs and diversity on the held-out prompts, and what was gained over the start."""
    print("| run | reward | over the start | forward KL | reverse KL | distinct-2 | s |\n|---|---|---|---|---|---|---|")
    for folder, name in NAMES.items():
        path = runs / folder / evaluation
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        trained, gained = content["generations"]["trained"], content["difference"]["reward_mean"]
        low, high = gained["interval"]
        row = [number(trained, "reward_mean"), f"{gained['estimate']:+.2f} [{low:+.2f}, {high:+.2f}]"]
        row += [number(trained, "forward_kl"), number(trained, "reverse_kl"), f"{trained['distinct_2']:.2f}"]
        seconds = max((line.get("time_s", 0.0) for line in lines_of(runs / folder)), default=None)
        print(f"| {name} | {' | '.join(row)} | {'' if seconds is None else f'{seconds:.0f}'} |")


PAIRED = [
    ("kl/tdpo2_online", "kl/tdpo2_offline"),
    ("rloo_sentiment", "ppo_sentiment"),
    ("rloo_3/evaluation", "ppo_3/evaluation"),
]


def values_of(run: Path, metric: str) -> np.ndarray[Any, Any]:
    """`[prompts, samples]` of the trained model's responses."""
    groups: dict[str, list[float]] = {}
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        if sample["model"] == "trained":
            groups.setdefault(sample["prompt_id"], []).append(sample[metric])
    return np.array(list(groups.values()))


def compared(runs: Path) -> None:
    """The difference of two runs, paired by prompt."""
    print("\n| | reward | reverse KL |\n|---|---|---|")
    for one, other in PAIRED:
        if not ((runs / one / "samples.jsonl").exists() and (runs / other / "samples.jsonl").exists()):
            continue
        row = []
        for metric in ("reward", "reverse_kl"):
            gap: dict[str, Any] = paired_difference(values_of(runs / one, metric), values_of(runs / other, metric))
            low, high = gap["interval"]
            row.append(f"{gap['estimate']:+.2f} [{low:+.2f}, {high:+.2f}]")
        print(f"| {NAMES[one]} − {NAMES[other]} | {' | '.join(row)} |")


def held(runs: Path) -> None:
    """The KL beside the loss on the held-out pairs, over the last third of a run, against its target."""
    print("\n| run | target | held out, over the last third | off by |\n|---|---|---|---|")
    for folder, name in NAMES.items():
        if not (runs / folder / "metrics.jsonl").exists():
            continue
        lines = lines_of(runs / folder)
        target = next((line["kl_target"] for line in lines if "kl_target" in line), None)
        steps = {line["step"]: line["kl_term"] for line in lines if line["split"] == "eval" and "kl_term" in line}
        last = [kl for step, kl in steps.items() if step > 2 * max(steps) / 3]
        if target is None or not last:
            continue
        kl = sum(last) / len(last)
        each = ", ".join(f"{value:.2f}" for value in last)
        print(f"| {name} | {target:g} | {kl:.2f} ({each}) | {kl / target - 1:+.0%} |")


def anchored(runs: Path) -> None:
    """What SFT on one task costs on another, with and without the anchor."""
    print(
        "\n| SFT on `brevity` | reward there | `sentiment`: reward | forward KL | reverse KL |\n|---|---|---|---|---|"
    )
    for name in ("sft", "sft_anchored"):
        there, elsewhere = (
            json.loads((runs / "kl" / name / f"evaluation-{task}.json").read_text(encoding="utf-8"))["generations"]
            for task in ("brevity", "sentiment")
        )
        if name == "sft":
            start = [number(content["base"], "reward_mean") for content in (there, elsewhere)]
            print(f"| not at all | {start[0]} | {start[1]} | 0 | 0 |")
        row = [number(there["trained"], "reward_mean"), number(elsewhere["trained"], "reward_mean")]
        row += [number(elsewhere["trained"], metric) for metric in ("forward_kl", "reverse_kl")]
        print(f"| {name.replace('_', ', ')} | {' | '.join(row)} |")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    judged(folder)
    compared(folder)
    held(folder)
    if (folder / "kl/sft_anchored/evaluation-sentiment.json").exists():
        anchored(folder)
