"""What an evaluation reports of the known answers to held-out prompts: lines of answers.jsonl, and metrics of modes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..diversity import exact_mode_metrics, mean_of_defined
from ..environments import Environment, Prompt, score
from .answer_probabilities import AnswerProbabilities, LogProbabilities
from .intervals import interval

Who = Literal["base", "trained"]
Line = Mapping[str, Any]


@dataclass(frozen=True)
class KnownAnswers:
    """The known answers to some prompts: their probabilities under both models, and the reward of each mode.

    `rewards` is None where the environment has no reward.
    """

    prompts: Sequence[Prompt]
    probabilities: AnswerProbabilities
    rewards: Sequence[Mapping[str, float]] | None

    def lines(self, who: Who) -> Iterator[dict[str, Any]]:
        """The lines of answers.jsonl for one model: a prompt and a mode each, log-probabilities in nats."""
        for at, (prompt, modes) in enumerate(zip(self.prompts, self._of(who), strict=True)):
            for mode, log_probability in modes.items():
                reward = None if self.rewards is None else self.rewards[at][mode]
                yield {
                    "prompt_id": prompt.id,
                    "model": who,
                    "mode": mode,
                    "log_probability": log_probability,
                    "reward": reward,
                }

    def described(self, who: Who) -> dict[str, Any]:
        """Means over prompts with 95 % intervals, for evaluation.json."""
        numbers: dict[str, Any] = {}
        for name, values in mode_metrics(self._of(who), self.rewards).items():
            defined = np.array([value for value in values if value is not None], dtype=np.float64)
            numbers[name] = mean_of_defined(values)
            numbers[f"{name}_interval"] = interval(defined) if len(defined) else None
        return numbers

    def _of(self, who: Who) -> list[LogProbabilities]:
        return self.probabilities.reference if who == "base" else self.probabilities.policy


def answer_rewards(environment: Environment, prompts: Sequence[Prompt]) -> list[dict[str, float]] | None:
    """The reward of every mode of each prompt, the mean over its answers; None where there is no reward.

    Raises:
        RewardError: as `score`.
    """
    if environment.reward is None:
        return None
    answers = [environment.answers_of(prompt) for prompt in prompts]
    texts_of_modes = [
        (prompt, text)
        for prompt, modes in zip(prompts, answers, strict=True)
        for texts in modes.values()
        for text in texts
    ]
    values = iter(score(environment, [prompt for prompt, _ in texts_of_modes], [text for _, text in texts_of_modes]))
    return [
        {mode: math.fsum(next(values) for _ in texts) / len(texts) for mode, texts in modes.items()}
        for modes in answers
    ]


def mode_metrics(
    log_probabilities: Sequence[Mapping[str, float]], rewards: Sequence[Mapping[str, float]] | None
) -> dict[str, list[float | None]]:
    """The metrics of `exact_mode_metrics` by name: a value for each prompt, None where it has no known answers."""
    rewards_by_prompt = [None] * len(log_probabilities) if rewards is None else rewards
    by_prompt = [exact_mode_metrics(*pair) for pair in zip(log_probabilities, rewards_by_prompt, strict=True)]
    names = dict.fromkeys(name for metrics in by_prompt for name in metrics)
    return {name: [metrics.get(name) for metrics in by_prompt] for name in names}


def metrics_of_lines(lines: Sequence[Line], prompts: Sequence[str], who: Who) -> dict[str, list[float | None]]:
    """The metrics of `mode_metrics` for these prompt ids, from the lines of answers.jsonl."""
    own: dict[str, list[Line]] = {prompt: [] for prompt in prompts}
    for line in lines:
        if line["model"] == who and line["prompt_id"] in own:
            own[line["prompt_id"]].append(line)
    log_probabilities = [{line["mode"]: line["log_probability"] for line in group} for group in own.values()]
    rewards = [{line["mode"]: line["reward"] for line in group} for group in own.values()]
    without_reward = any(value is None for of_prompt in rewards for value in of_prompt.values())
    return mode_metrics(log_probabilities, None if without_reward else rewards)
