"""Evaluate a finished run: `evaluation.json` and `samples.jsonl` in its directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ..batches import tokenize_pairs
from ..config import AnyRecipe, PPORecipe, Recipe
from ..environments import Environment
from ..generation import SamplingSettings
from ..models import has_adapter, load_causal_lm, load_tokenizer, model_facts, reference_for
from ..runs import RunDirectory
from ..runs.files import write_text
from ..training.data import read_data
from ..training.losses import configured_loss
from ..training.ppo_data import environment_of
from ..training.statistics import PolicyStatistics
from .base_samples import keep_samples, kept_samples, samples_identity
from .generations import Sampled, describe, sample_and_score, scored, sequence_kls
from .intervals import paired_difference
from .pairs import evaluate_pairs

Progress = Callable[[str, int, int], None]  # stage, done, total
PAIRS_AT_ONCE = 16


def evaluate_run(
    run: RunDirectory,
    recipe: AnyRecipe,
    *,
    base_from: RunDirectory | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the run's model with its base on held-out pairs and held-out prompts; write what was found.

    Args:
        run: a run whose training has finished.
        recipe: its recipe; the `evaluation` section says how to sample.
        base_from: another run that was evaluated. Its samples of the base model are taken over if they are those that
            would be drawn here: same base, prompts, settings and seed. The numbers are the same either way.
        progress: called with a stage's name and how far it is.

    Returns:
        The content of evaluation.json.

    Raises:
        RunError: no trained model yet.
        ValueError: neither held-out rows nor held-out prompts with a reward to evaluate on.
    """
    started = time.perf_counter()
    _check_something_held_out(recipe)
    judged = _Judged(run, recipe, base_from, progress)
    result: dict[str, Any] = {
        "schema": 1,
        "settings": None,
        "run": _describe_run(run, recipe),
        "pairs": judged.pairs(),
        "generations": None,
        "difference": None,
    }
    environment = judged.environment()
    if environment is not None:
        result |= judged.generations(environment)
    result["versions"] = (run.read_json("environment.json") or {}).get("versions", {})
    result["seconds"] = round(time.perf_counter() - started, 1)
    run.write_json("evaluation.json", result)
    return result


def _check_something_held_out(recipe: AnyRecipe) -> None:
    """Before models load."""
    if recipe.environment is not None:
        has_pairs = isinstance(recipe, Recipe) and _holds_out_pairs(recipe)
        if not recipe.environment.holds_out and not has_pairs:
            raise ValueError(
                "nothing to evaluate on: the recipe holds no prompts out; set environment.held_out to a file of "
                "prompts that were not trained on"
            )
        return
    if isinstance(recipe, PPORecipe):
        if recipe.prompts is None or recipe.prompts.eval is None:
            raise ValueError(
                "nothing to evaluate on: the recipe holds no prompts out; set prompts.eval to a file of prompts that "
                "were not trained on"
            )
    elif not _holds_out_pairs(recipe):
        raise ValueError(
            "nothing to evaluate on: the recipe has neither held-out rows (data.eval, data.eval_fraction) nor an "
            "environment (environment.name) whose prompts and reward could be used"
        )


def _holds_out_pairs(recipe: Recipe) -> bool:
    return recipe.data.eval is not None or recipe.data.eval_fraction is not None


class _Judged:
    """The trained policy with its reference, loaded once for both parts of the evaluation."""

    def __init__(
        self,
        run: RunDirectory,
        recipe: AnyRecipe,
        base_from: RunDirectory | None,
        progress: Progress | None,
    ) -> None:
        self.run, self.recipe, self.base_from, self.progress = run, recipe, base_from, progress
        trust = recipe.model.trust_remote_code
        self.tokenizer = load_tokenizer(run.model_path, trust_remote_code=trust)
        self.policy = load_causal_lm(run.model_path, dtype=recipe.model.dtype, trust_remote_code=trust)
        other = recipe.model.reference or (None if has_adapter(self.policy) else recipe.model.name)
        given = None if other is None else load_causal_lm(other, dtype=recipe.model.dtype, trust_remote_code=trust)
        self.reference = reference_for(self.policy, given)
        self.statistics = PolicyStatistics.of(self.policy, self.reference)

    def pairs(self) -> dict[str, Any] | None:
        """Held-out pairs, or None where the recipe holds none out, as one of PPO never does."""
        recipe = self.recipe
        if isinstance(recipe, PPORecipe) or not _holds_out_pairs(recipe):
            return None
        held_out = read_data(recipe).eval
        if held_out is None:
            return None
        facts = model_facts(recipe.model.name, self.tokenizer)
        limit = facts.max_length(recipe.data.max_length)
        tokenized = tokenize_pairs(held_out.rows, self.tokenizer, limit, end_ids=facts.end_token_ids)
        numbers = evaluate_pairs(
            self.policy,
            self.statistics,
            configured_loss(recipe.loss.name, recipe.loss.beta, recipe.loss.alpha, recipe.loss.label_smoothing),
            tokenized.pairs,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=PAIRS_AT_ONCE,
            progress=self._stage("held-out pairs"),
        )
        return {"source": held_out.source, **numbers}

    def environment(self) -> Environment | None:
        """Whose prompts and reward generations are judged with; None where the recipe has pairs only."""
        if self.recipe.environment is not None:
            return self.recipe.environment.load() if self.recipe.environment.holds_out else None
        return environment_of(self.recipe, self.tokenizer) if isinstance(self.recipe, PPORecipe) else None

    def generations(self, environment: Environment) -> dict[str, Any]:
        """Samples of both models with the same seeds, their rewards and KLs; writes samples.jsonl."""
        settings = self._settings(environment)
        prompts = environment.held_out
        if not prompts:
            raise ValueError(
                f"nothing to evaluate on: {environment.name} has no held-out prompts; give it some, or set prompts.eval"
            )
        base = self._base_samples(environment, settings)
        trained = self._sample(environment, settings, reference=False)
        forward, reverse = sequence_kls(
            self.policy,
            self.statistics,
            self.tokenizer,
            prompts,
            trained,
            base,
            batch_size=PAIRS_AT_ONCE,
            progress=self._stage("exact KLs"),
        )
        self._write_samples(environment, base, trained, forward, reverse)
        return {
            "settings": {
                "environment": environment.name,
                "reward": environment.reward_name,
                "prompts": len(prompts),
                "samples_per_prompt": settings.num_samples,
                "max_new_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "seed": settings.seed,
            },
            "generations": {"base": describe(base, None, None), "trained": describe(trained, forward, reverse)},
            "difference": {"reward_mean": paired_difference(trained.table(trained.rewards), base.table(base.rewards))},
        }

    def _settings(self, environment: Environment) -> SamplingSettings:
        chosen = self.recipe.evaluation
        return SamplingSettings(
            num_samples=chosen.samples_per_prompt,
            max_new_tokens=chosen.max_new_tokens or environment.max_new_tokens,
            temperature=chosen.temperature,
            seed=chosen.seed,
            batch_size=chosen.batch_size,
        )

    def _base_samples(self, environment: Environment, settings: SamplingSettings) -> Sampled:
        """What the base says, from `base_from` where that holds it, else sampled; kept in this run's directory."""
        prompts = environment.held_out
        identity = samples_identity(self.policy, self.reference, self.tokenizer, prompts, settings)
        known = None if self.base_from is None else kept_samples(self.base_from, identity)
        if known is None:
            base = self._sample(environment, settings, reference=True)
        else:
            base = scored(environment, prompts, known)
        keep_samples(self.run, identity, base.completions)
        return base

    def _sample(self, environment: Environment, settings: SamplingSettings, *, reference: bool) -> Sampled:
        model = self.reference.model if reference and self.reference.model is not None else self.policy
        return sample_and_score(
            model,
            self.tokenizer,
            environment,
            environment.held_out,
            settings,
            as_reference=reference and self.reference.model is None,
            progress=self._stage(f"samples of the {'base' if reference else 'trained'} model"),
        )

    def _write_samples(
        self, environment: Environment, base: Sampled, trained: Sampled, forward: list[float], reverse: list[float]
    ) -> None:
        lines = []
        for name, sampled, kls in (("base", base, forward), ("trained", trained, reverse)):
            for completion, reward, kl in zip(sampled.completions, sampled.rewards, kls, strict=True):
                prompt = environment.held_out[completion.prompt_index]
                lines.append(
                    {
                        "prompt_id": prompt.id,
                        "prompt": _last_turn(prompt.prompt),
                        "sample_index": completion.sample_index,
                        "model": name,
                        "text": completion.text,
                        "reward": reward,
                        "tokens": len(completion.token_ids),
                        "finished": completion.finished,
                        "forward_kl" if name == "base" else "reverse_kl": kl,
                    }
                )
        write_text(
            self.run.path / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )

    def _stage(self, name: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(name, done, total)


def _describe_run(run: RunDirectory, recipe: AnyRecipe) -> dict[str, Any]:
    if isinstance(recipe, PPORecipe):
        method: dict[str, Any] = {"loss": "ppo", "kl": recipe.kl.model_dump()}
    else:
        method = {"loss": recipe.loss.name, "beta": recipe.loss.beta, "alpha": recipe.loss.alpha}
    return {"name": run.path.resolve().name, **method, "model": recipe.model.name}


def _last_turn(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
