"""Evaluate a finished run: `evaluation.json` and `samples.jsonl` in its directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from ..batches import tokenize_pairs
from ..config import Recipe
from ..environments import Environment, load_environment
from ..generation import SamplingSettings
from ..models import has_adapter, load_causal_lm, load_tokenizer, model_facts, reference_for
from ..runs import RunDirectory
from ..runs.files import write_text
from ..training.data import read_data
from ..training.losses import configured_loss
from ..training.statistics import PolicyStatistics
from .generations import Sampled, describe, sample_and_score, sequence_kls
from .intervals import paired_difference
from .pairs import evaluate_pairs

Progress = Callable[[str, int, int], None]  # stage, done, total
PAIRS_AT_ONCE = 16


def evaluate_run(run: RunDirectory, recipe: Recipe, *, progress: Progress | None = None) -> dict[str, Any]:
    """Compare the run's model with its base on held-out pairs and held-out prompts; write what was found.

    Args:
        run: a run whose training has finished.
        recipe: its recipe; the `evaluation` section says how to sample.
        progress: called with a stage's name and how far it is.

    Returns:
        The content of evaluation.json.

    Raises:
        RunError: no trained model yet.
        ValueError: neither held-out rows nor an environment to evaluate on.
    """
    started = time.perf_counter()
    if recipe.environment is None and recipe.data.eval is None and recipe.data.eval_fraction is None:
        raise ValueError(
            "nothing to evaluate on: the recipe has neither held-out rows (data.eval, data.eval_fraction) nor an "
            "environment (environment.name) whose prompts and reward could be used"
        )
    judged = _Judged(run, recipe, progress)
    result: dict[str, Any] = {
        "schema": 1,
        "settings": None,
        "run": _describe_run(run, recipe),
        "pairs": judged.pairs(),
        "generations": None,
        "difference": None,
    }
    if recipe.environment is not None:
        result |= judged.generations(load_environment(recipe.environment.name))
    result["versions"] = (run.read_json("environment.json") or {}).get("versions", {})
    result["seconds"] = round(time.perf_counter() - started, 1)
    run.write_json("evaluation.json", result)
    return result


class _Judged:
    """The trained policy with its reference, loaded once for both parts of the evaluation."""

    def __init__(self, run: RunDirectory, recipe: Recipe, progress: Progress | None) -> None:
        self.run, self.recipe, self.progress = run, recipe, progress
        trust = recipe.model.trust_remote_code
        self.tokenizer = load_tokenizer(run.model_path, trust_remote_code=trust)
        self.policy = load_causal_lm(run.model_path, dtype=recipe.model.dtype, trust_remote_code=trust)
        other = recipe.model.reference or (None if has_adapter(self.policy) else recipe.model.name)
        given = None if other is None else load_causal_lm(other, dtype=recipe.model.dtype, trust_remote_code=trust)
        self.reference = reference_for(self.policy, given)
        self.statistics = PolicyStatistics.of(self.policy, self.reference)

    def pairs(self) -> dict[str, Any] | None:
        """Held-out pairs, or None where the recipe holds none out."""
        held_out = read_data(self.recipe).eval if self._holds_out() else None
        if held_out is None:
            return None
        facts = model_facts(self.recipe.model.name, self.tokenizer)
        limit = facts.max_length(self.recipe.data.max_length)
        tokenized = tokenize_pairs(held_out.rows, self.tokenizer, limit, end_ids=facts.end_token_ids)
        numbers = evaluate_pairs(
            self.policy,
            self.statistics,
            configured_loss(
                self.recipe.loss.name, self.recipe.loss.beta, self.recipe.loss.alpha, self.recipe.loss.label_smoothing
            ),
            tokenized.pairs,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=PAIRS_AT_ONCE,
            progress=self._stage("held-out pairs"),
        )
        return {"source": held_out.source, **numbers}

    def generations(self, environment: Environment) -> dict[str, Any]:
        """Samples of both models with the same seeds, their rewards and KLs; writes samples.jsonl."""
        settings = self._settings(environment)
        prompts = environment.held_out
        base = self._sample(environment, settings, reference=True)
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

    def _holds_out(self) -> bool:
        return self.recipe.data.eval is not None or self.recipe.data.eval_fraction is not None

    def _settings(self, environment: Environment) -> SamplingSettings:
        chosen = self.recipe.evaluation
        return SamplingSettings(
            num_samples=chosen.samples_per_prompt,
            max_new_tokens=chosen.max_new_tokens or environment.max_new_tokens,
            temperature=chosen.temperature,
            seed=chosen.seed,
            batch_size=chosen.batch_size,
        )

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


def _describe_run(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    loss = recipe.loss
    return {
        "name": run.path.resolve().name,
        "loss": loss.name,
        "beta": loss.beta,
        "alpha": loss.alpha,
        "model": recipe.model.name,
    }


def _last_turn(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
