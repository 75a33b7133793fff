"""How far a policy can go on a task with known answers: the best policy at each reverse KL, from exact probabilities.

python docs/study/reachable.py runs/study_two_cores/cells/graded_categories/reference-s0/run/answers.jsonl

The policy that gets the most reward for its reverse KL is q·exp(λ·reward), normalised, where q is the reference. All
that is not a known answer counts as one response with reward 0. KLs are in nats per response; numbers are means over
prompts.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

STRENGTHS = (0, 2, 4, 6, 8, 12, 20, 80)


def of_prompt(probabilities: list[float], rewards: list[float], strength: float) -> list[float]:
    """Reverse KL, forward KL, reward, effective modes and probability of known answers of the best policy."""
    reference = np.array([*probabilities, max(1 - sum(probabilities), 1e-9)])
    gain = strength * np.array([*rewards, 0.0])
    log_policy = np.log(reference) + gain - np.logaddexp.reduce(np.log(reference) + gain)
    policy, log_ratio = np.exp(log_policy), log_policy - np.log(reference)
    known = policy[:-1] / policy[:-1].sum()
    entropy = -(known * np.log(np.maximum(known, 1e-300))).sum()
    reward = float(policy[:-1] @ np.array(rewards))
    return [policy @ log_ratio, -reference @ log_ratio, reward, np.exp(entropy), policy[:-1].sum()]


def main(path: Path) -> None:
    prompts: dict[str, list[Any]] = defaultdict(list)
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if line["model"] == "base":
            prompts[line["prompt_id"]].append((float(np.exp(line["log_probability"])), line["reward"]))
    print("| λ | reverse KL | forward KL | expected reward | effective modes | probability of known answers |")
    print("|---|---|---|---|---|---|")
    for strength in STRENGTHS:
        columns = [zip(*answers, strict=True) for answers in prompts.values()]
        numbers = np.mean([of_prompt(list(p), list(r), strength) for p, r in columns], axis=0)
        print(f"| {strength} | {' | '.join(f'{number:.2f}' for number in numbers)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
