"""Baselines of a base model that cost no training: the best of n of its responses, and another temperature."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from ..config import AnyRecipe
from ..runs import RunDirectory
from ..sampling.sampler import SampledResponse
from ..scoring.head_path import HeadPath
from ..scoring.policy_statistics import PolicyStatistics
from ..scoring.reference_source import LiveReference
from ..token_statistics import Head
from .held_out_responses import HeldOutResponses
from .judged_models import JudgedModels, Progress
from .sample_lines import UNMEASURED, UNMEASURED_BASE, base_numbers, trained_numbers


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
    with closing(_Baseline.base(run, recipe, base_from, progress)) as judged:
        judged.best_of(n)


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
    with closing(_Baseline.base(run, recipe, base_from, progress)) as judged:
        judged.at_temperature(temperature)


class _Baseline(JudgedModels):
    """The base model in the place of a trained one."""

    def best_of(self, n: int) -> None:
        environment = self._answered()
        settings = self.settings(environment)
        if environment.reward is None:
            raise ValueError(f"best of {n}: {environment.name} has no reward to choose by")
        more = self._sample(environment, replace(settings, num_samples=n * settings.num_samples), reference=False)
        base, own = self._base_samples(environment, settings), best_of_every(more, n)
        self._write_samples(self.prompts(environment), base, UNMEASURED_BASE, own, UNMEASURED)

    def at_temperature(self, temperature: float) -> None:
        environment = self._answered()
        settings = self.settings(environment)
        hot = replace(settings, temperature=settings.temperature * temperature)
        base, own = self._base_samples(environment, settings), self._sample(environment, hot, reference=False)
        cooled, prompts = self._statistics_at(temperature), self.prompts(environment)
        if cooled is None:
            self._write_samples(prompts, base, UNMEASURED_BASE, own, UNMEASURED)
            return
        self.statistics = cooled
        measured = self._distances(prompts, own, base)
        self._write_samples(prompts, base, base_numbers(measured), own, trained_numbers(measured))
        self._known_answers(environment, prompts, ("base", "trained"))

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
