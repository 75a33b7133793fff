"""Baselines of a base model that cost no training: the best of n of its responses, and another temperature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..config import AnyRecipe
from ..environments import Environment, check_reward
from ..records.files import write_text
from ..records.names import SAMPLES_FILE
from ..runs import RunDirectory
from ..sampling.sampler import SampledResponse
from ..scoring.head_path import HeadPath
from ..scoring.policy_statistics import PolicyStatistics
from ..scoring.reference_source import LiveReference
from ..token_statistics import Head
from .held_out_responses import HeldOutResponses
from .run import Progress, _Judged, _lines

# Columns of samples.jsonl without a value.
Numbers = Mapping[str, Sequence[float]]
UNMEASURED_BASE: Numbers = {"forward_kl": [], "policy_entropy": []}
UNMEASURED: Numbers = {"reverse_kl": [], "policy_entropy": []}


def evaluate_best_of(
    run: RunDirectory, recipe: AnyRecipe, n: int, *, base_from: RunDirectory, progress: Progress | None = None
) -> None:
    """Take the best of every `n` responses of the base model by reward, and write them as those of a trained model.

    `n` times `evaluation.samples_per_prompt` responses are drawn for each prompt; of equal rewards the first wins. The
    distribution of the best has no probabilities that could be computed, so KLs and entropy are null in samples.jsonl.

    Args:
        base_from: where the base model's own responses are, as for `evaluate_run`.

    Raises:
        ValueError: there is no reward to choose by, or nothing to answer.
    """
    _Baseline.base(run, recipe, base_from, progress).best_of(n)


def evaluate_temperature(
    run: RunDirectory,
    recipe: AnyRecipe,
    temperature: float,
    *,
    base_from: RunDirectory,
    progress: Progress | None = None,
) -> None:
    """Sample the base model at `temperature` times `evaluation.temperature`, as if a trained model were sampled.

    The policy is softmax(z/T) with the base's logits z. Its KLs to the base and the probabilities of known answers are
    exact, as those of a trained model. Where the base's logits are capped or no linear head, no head gives z/T: then
    KLs are null in samples.jsonl, and there is no answers.jsonl.

    Args:
        base_from: where the base model's own responses are, as for `evaluate_run`.

    Raises:
        ValueError: nothing to answer.
    """
    _Baseline.base(run, recipe, base_from, progress).at_temperature(temperature)


class _Baseline(_Judged):
    """The base model in the place of a trained one."""

    def best_of(self, n: int) -> None:
        environment = self._answered()
        settings = self._settings(environment)
        if environment.reward is None:
            raise ValueError(f"best of {n}: {environment.name} has no reward to choose by")
        more = self._sample(environment, replace(settings, num_samples=n * settings.num_samples), reference=False)
        base, own = self._base_samples(environment, settings), best_of_every(more, n)
        self._write(environment, base, UNMEASURED_BASE, own, UNMEASURED)

    def at_temperature(self, temperature: float) -> None:
        environment = self._answered()
        settings = self._settings(environment)
        hot = replace(settings, temperature=settings.temperature * temperature)
        base, own = self._base_samples(environment, settings), self._sample(environment, hot, reference=False)
        cooled = self._statistics_at(temperature)
        if cooled is None:
            self._write(environment, base, UNMEASURED_BASE, own, UNMEASURED)
            return
        self.statistics, prompts = cooled, self._prompts(environment)
        measured = self._distances(prompts, own, base)
        of_base = {"forward_kl": measured.forward_kl, "policy_entropy": measured.reference_entropy}
        of_own = {"reverse_kl": measured.reverse_kl, "policy_entropy": measured.policy_entropy}
        self._write(environment, base, of_base, own, of_own)
        self._known_answers(environment, prompts, ("base", "trained"))

    def _answered(self) -> Environment:
        environment = self.environment()
        if environment is None:
            raise ValueError("nothing to answer: the recipe has no environment, and evaluation.max_prompts is null")
        check_reward(environment, self._prompts(environment), self._settings(environment).max_new_tokens)
        return environment

    def _statistics_at(self, temperature: float) -> PolicyStatistics | None:
        """The statistics of softmax(z/T) beside softmax(z); None where no head gives z/T."""
        head = self.statistics.path.head
        if head is None or head().softcap is not None:
            return None

        def divided() -> Head:
            own = head()
            return Head(own.weight, own.bias, scale=own.scale / temperature)

        path = HeadPath("tiled", f"the policy is the reference at temperature {temperature:g}", divided)
        return PolicyStatistics(path, LiveReference(self.reference, path))

    def _write(
        self,
        environment: Environment,
        base: HeldOutResponses,
        of_base: Numbers,
        own: HeldOutResponses,
        of_own: Numbers,
    ) -> None:
        prompts = self._prompts(environment)
        lines = [*_lines("base", prompts, base, of_base), *_lines("trained", prompts, own, of_own)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(self.run.path / SAMPLES_FILE, text)


def best_of_every(sampled: HeldOutResponses, n: int) -> HeldOutResponses:
    """The best of every `n` responses to a prompt in turn, numbered anew; of equal rewards the first."""
    assert sampled.rewards is not None
    rewards = sampled.table(sampled.rewards)
    prompts, samples = rewards.shape
    best = rewards.reshape(prompts, samples // n, n).argmax(axis=2) + np.arange(0, samples, n)
    responses: list[SampledResponse] = [
        replace(sampled.responses[prompt * samples + int(at)], sample_index=number)
        for prompt in range(prompts)
        for number, at in enumerate(best[prompt])
    ]
    return HeldOutResponses(responses, [float(value) for value in np.take_along_axis(rewards, best, axis=1).flat])
