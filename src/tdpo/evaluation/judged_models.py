"""A policy beside its reference, loaded once, and what an evaluation asks of the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self

from ..config import AnyRecipe, Recipe, why_not_handed_over
from ..config import Reward as RewardEntry
from ..config.training_defaults import trains_adapter
from ..environments import Environment, Prompt, check_reward
from ..models import (
    Reference,
    find_head,
    has_adapter,
    load_causal_lm,
    load_tokenizer,
    model_facts,
    quantization_config,
    reference_for,
)
from ..models.devices import device_of
from ..models.precision import held_dtype, hold_weights, loaded_dtype
from ..preferences import Preferences
from ..recipe_data.pairs import prompt_key, read_held_out, tokenize_rows
from ..recipe_data.prompts import environment_of
from ..records.files import write_text
from ..records.names import ADAPTERS_FOLDER, ANSWERS_FILE, SAMPLES_FILE
from ..runs import RunDirectory
from ..sampling.engines import ResponseSampler, response_sampler
from ..sampling.sampler import SamplingSettings, encode_prompts
from ..scoring.configured_loss import configured_loss
from ..scoring.policy_statistics import PolicyStatistics
from .answer_probabilities import answer_log_probabilities
from .base_samples import keep_samples, kept_samples, samples_identity
from .held_out_pairs import evaluate_pairs
from .held_out_responses import Distances, HeldOutResponses, describe, distances, sample_and_score, scored
from .held_out_sources import check_something_held_out, prompts_of
from .intervals import paired_difference
from .judge import Judge
from .known_answers import KnownAnswers, Who, answer_rewards
from .sample_lines import Numbers, base_numbers, sample_lines, trained_numbers
from .trained_model import TrainedModel

Progress = Callable[[str, int, int], None]  # stage, done, total
PAIRS_AT_ONCE = 16


class JudgedModels:
    """A policy with its reference, loaded once for all parts of the evaluation."""

    def __init__(
        self,
        run: RunDirectory,
        recipe: AnyRecipe,
        policy: Any,
        tokenizer: Any,
        reference: Reference,
        base_from: RunDirectory | None,
        judge: Judge | None,
        progress: Progress | None,
    ) -> None:
        self.run, self.recipe, self.base_from, self.judge, self.progress = run, recipe, base_from, judge, progress
        self.policy, self.tokenizer, self.reference = policy, tokenizer, reference
        self.statistics = PolicyStatistics.of(policy, reference)

    @classmethod
    def trained(
        cls,
        run: RunDirectory,
        recipe: AnyRecipe,
        trained: TrainedModel,
        base_from: RunDirectory | None,
        judge: RewardEntry | None,
        progress: Progress | None,
    ) -> Self:
        """The trained model beside its reference."""
        trust, device = recipe.model.trust_remote_code, recipe.model.device
        tokenizer = load_tokenizer(trained.tokenizer, trust_remote_code=trust)
        loaded_judge = (
            None if judge is None else Judge.load(judge, tokenizer, device_of(device), trust_remote_code=trust)
        )
        policy = trained.load(recipe.model.dtype, trust_remote_code=trust, device=device)
        model = trained.load_reference(recipe.model.dtype, trust_remote_code=trust, device=device)
        return cls(run, recipe, policy, tokenizer, reference_for(policy, model), base_from, loaded_judge, progress)

    @classmethod
    def base(
        cls, run: RunDirectory, recipe: AnyRecipe, base_from: RunDirectory | None, progress: Progress | None
    ) -> Self:
        """The base model beside itself, held as policies are. Raises ValueError as `evaluate_run`."""
        check_something_held_out(recipe)
        trust = recipe.model.trust_remote_code
        name = recipe.model.reference or recipe.model.name
        base = load_causal_lm(
            name,
            dtype=recipe.model.dtype,
            trust_remote_code=trust,
            quantization=quantization_config(recipe.model.quantization) if recipe.model.reference is None else None,
            device=recipe.model.device,
        )
        training = recipe.optimization
        has_lora = trains_adapter(recipe.model.name, recipe.model.lora is not None)
        hold_weights(base, held_dtype(training.precision, loaded_dtype(base), has_adapter=has_lora))
        tokenizer = load_tokenizer(recipe.model.name, trust_remote_code=trust)
        itself = Reference("second model", base, find_head(base))
        return cls(run, recipe, base, tokenizer, itself, base_from, None, progress)

    @cached_property
    def sampler(self) -> ResponseSampler:
        """What draws the responses. Raises ValueError where a server cannot have one of the two models."""
        engine, reference = self.recipe.sampling.engine, self.reference.model
        if reference is not self.policy:  # a base alone, which a server has, is both
            for model in [self.policy] if reference is None else [self.policy, reference]:
                if reason := why_not_handed_over(engine, has_adapter=has_adapter(model)):
                    raise ValueError(f"sampling.engine {reason}")
        folder = self.run.path / ADAPTERS_FOLDER
        return response_sampler(self.recipe.sampling, folder=folder, owner=str(folder.absolute()))

    def prepare(self, environment: Environment) -> None:
        """Raise what would stop the answering of its prompts: a reward that fails, a server that is the wrong one."""
        settings, prompts = self.settings(environment), self.prompts(environment)
        check_reward(environment, prompts, settings.max_new_tokens)
        longest = max(encode_prompts(self.tokenizer, [prompt.rendered_from for prompt in prompts]), key=len)
        self.sampler.prepare(self.policy, self.tokenizer, longest, settings)

    def close(self) -> None:
        """Take the policy's adapter off a server that had it."""
        if "sampler" in vars(self):
            self.sampler.close()

    def pairs(self, *, own: bool) -> dict[str, Any] | None:
        """Held-out pairs, or None where the recipe holds none out, as one on own responses never does.

        `own`: the run's training held them out; of others it is not known whether training saw them.
        """
        recipe, held_out = self.recipe, self._held_out_rows()
        if held_out is None or not isinstance(recipe, Recipe):
            return None
        facts = model_facts(recipe.model.name, self.tokenizer, trust_remote_code=recipe.model.trust_remote_code)
        tokenized = tokenize_rows(held_out, recipe, self.tokenizer, facts)
        prompt_of = {(row.source, row.row): prompt_key(row) for row in held_out.rows}
        loss = recipe.loss
        numbers = evaluate_pairs(
            self.policy,
            self.statistics,
            # Without a KL beside it: what is reported of pairs is the same, both KLs included.
            configured_loss(loss.name, loss.beta, loss.alpha, loss.label_smoothing, gamma=loss.gamma).of_pairs,
            tokenized.pairs,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=PAIRS_AT_ONCE,
            prompts=[prompt_of[pair.source, pair.row] for pair in tokenized.pairs],
            progress=self._stage("held-out pairs"),
        )
        return {"source": held_out.source, "held_out": own or None, **numbers}

    def _held_out_rows(self) -> Preferences | None:
        recipe = self.recipe
        return read_held_out(recipe) if isinstance(recipe, Recipe) else None

    def environment(self) -> Environment | None:
        """Its prompts get responses, which the judge scores, else its reward; None where nothing is to be answered."""
        environment = self._environment_of_recipe()
        return environment if environment is None or self.judge is None else self.judge.over(environment)

    def _environment_of_recipe(self) -> Environment | None:
        if self.recipe.environment is not None and self.recipe.environment.holds_out:
            return self.recipe.environment.load()
        if not isinstance(self.recipe, Recipe):
            return environment_of(self.recipe, self.tokenizer)
        held_out = self._held_out_rows()
        without_environment = self.recipe.environment is None
        wanted = without_environment and self.recipe.evaluation.max_prompts is not None
        return prompts_of(held_out) if held_out is not None and (wanted or self.judge is not None) else None

    def responses(self, environment: Environment) -> dict[str, Any]:
        """Responses of both models with the same seeds, their rewards and KLs; writes samples.jsonl."""
        settings, prompts = self.settings(environment), self.prompts(environment)
        base = self._base_samples(environment, settings)
        trained = self._sample(environment, settings, reference=False)
        measured = self._distances(prompts, trained, base)
        self._write_samples(prompts, base, base_numbers(measured), trained, trained_numbers(measured))
        modes = self._known_answers(environment, prompts, ("base", "trained"))
        gap = None
        if base.rewards is not None and trained.rewards is not None:
            gap = paired_difference(trained.table(trained.rewards), base.table(base.rewards))
        return {
            "settings": {
                "environment": environment.name,
                "reward": environment.reward_name,
                "prompts": len(prompts),
                "samples_per_prompt": settings.num_samples,
                "max_new_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "seed": settings.seed,
                **({} if self.judge is None else {"judge": self.judge.source}),
                **self.sampler.identity,
            },
            "generations": {
                "base": {**describe(base, None, measured.reference_entropy), **modes.get("base", {})},
                "trained": {**describe(trained, measured, measured.policy_entropy), **modes.get("trained", {})},
            },
            "difference": None if gap is None else {"reward_mean": gap},
        }

    def base_alone(self) -> None:
        """Responses of the base model with its entropy, where policy and reference are both that model."""
        environment = self._answered()
        settings, prompts = self.settings(environment), self.prompts(environment)
        base = self._base_samples(environment, settings)
        measured = vars(self._distances(prompts, base, base))
        numbers = {name: measured[name] for name in ("forward_kl", "reverse_kl", "policy_entropy")}
        self._write_lines(SAMPLES_FILE, sample_lines("base", prompts, base, numbers))
        self._known_answers(environment, prompts, ("base",))

    def _answered(self) -> Environment:
        """The environment whose prompts are answered, its reward checked. Raises ValueError where there is none."""
        environment = self.environment()
        if environment is None:
            raise ValueError("nothing to answer: the recipe has no environment, and evaluation.max_prompts is null")
        check_reward(environment, self.prompts(environment), self.settings(environment).max_new_tokens)
        return environment

    def _known_answers(
        self, environment: Environment, prompts: list[Prompt], models: Sequence[Who]
    ) -> dict[str, dict[str, Any]]:
        """The exact probabilities of known answers: writes answers.jsonl, returns the numbers of each model.

        Without known answers there is neither, and a file of an earlier evaluation is removed.
        """
        answers = [environment.answers_of(prompt) for prompt in prompts]
        if not any(answers):
            (self.run.path / ANSWERS_FILE).unlink(missing_ok=True)
            return {}
        rewards = answer_rewards(environment, prompts)
        stage = self._stage("exact modes")
        probabilities = answer_log_probabilities(
            self.policy, self.statistics, self.tokenizer, prompts, answers, progress=stage
        )
        modes = KnownAnswers(prompts, probabilities, rewards)
        self._write_lines(ANSWERS_FILE, [line for who in models for line in modes.lines(who)])
        return {who: modes.described(who) for who in models}

    def _distances(self, prompts: list[Prompt], own: HeldOutResponses, base: HeldOutResponses) -> Distances:
        return distances(
            self.policy,
            self.statistics,
            self.tokenizer,
            prompts,
            own.first(self.recipe.evaluation.kl_samples_per_prompt),
            base.first(self.recipe.evaluation.kl_samples_per_prompt),
            batch_size=PAIRS_AT_ONCE,
            progress=self._stage("exact KLs"),
        )

    def prompts(self, environment: Environment) -> list[Prompt]:
        """The held-out prompts that are answered. Raises ValueError where there is none."""
        prompts = environment.held_out[: self.recipe.evaluation.max_prompts]
        if not prompts:
            raise ValueError(
                f"nothing to evaluate on: {environment.name} has no held-out prompts; give it some, or set prompts.eval"
            )
        return prompts

    def settings(self, environment: Environment) -> SamplingSettings:
        """How they are answered."""
        section = self.recipe.evaluation
        return SamplingSettings(
            num_samples=section.samples_per_prompt,
            max_new_tokens=section.max_new_tokens or environment.max_new_tokens,
            temperature=section.temperature,
            seed=section.seed,
            batch_size=section.batch_size,
        )

    def _base_samples(self, environment: Environment, settings: SamplingSettings) -> HeldOutResponses:
        """What the base says, from `base_from` where that holds it, else sampled; kept in this run's directory."""
        prompts = self.prompts(environment)
        identity = samples_identity(self.policy, self.reference, self.tokenizer, prompts, settings, self.sampler)
        responses = None if self.base_from is None else kept_samples(self.base_from, identity)
        if responses is None:
            base = self._sample(environment, settings, reference=True)
        else:
            base = scored(environment, prompts, responses)
        keep_samples(self.run, identity, base.responses)
        return base

    def _sample(self, environment: Environment, settings: SamplingSettings, *, reference: bool) -> HeldOutResponses:
        model = self.reference.model if reference and self.reference.model is not None else self.policy
        return sample_and_score(
            model,
            self.tokenizer,
            environment,
            self.prompts(environment),
            settings,
            as_reference=reference and self.reference.model is None,
            sampler=self.sampler,
            progress=self._stage(f"samples of the {'base' if reference else 'trained'} model"),
        )

    def _write_samples(
        self,
        prompts: list[Prompt],
        base: HeldOutResponses,
        of_base: Numbers,
        own: HeldOutResponses,
        of_own: Numbers,
    ) -> None:
        """Write samples.jsonl: the base's responses, then those of the trained model or of what takes its place."""
        lines = [*sample_lines("base", prompts, base, of_base), *sample_lines("trained", prompts, own, of_own)]
        self._write_lines(SAMPLES_FILE, lines)

    def _write_lines(self, name: str, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(self.run.path / name, text)

    def _stage(self, name: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(name, done, total)
