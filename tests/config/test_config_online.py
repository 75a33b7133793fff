"""Recipes with a section `online`: which schema a file gets, what is resolved, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdpo.config import (
    OnlineRecipe,
    RecipeError,
    ReferenceUpdate,
    documented_keys,
    dump_recipe,
    load_recipe,
    only_in_online,
)
from tdpo.runs.resume import check_resumable
from tdpo.workflows.trainer_arguments import online_arguments

MINIMAL = {"run_dir": "runs/x", "online": {}, "environment": {"name": "sentiment"}}
OWN = {"run_dir": "runs/x", "online": {}, "prompts": {"train": "p.jsonl"}, "rollouts": {"max_new_tokens": 8}}
DISTILLING = {**OWN, "model": {"reference": "teacher"}, "loss": {"name": "kl"}}


def recipe(*overrides: str, given: dict[str, Any] = MINIMAL) -> OnlineRecipe:
    loaded = load_recipe(given, overrides)
    assert isinstance(loaded, OnlineRecipe)
    return loaded


def problems(*overrides: str, given: dict[str, Any] = MINIMAL) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(given, overrides)
    return [f"{problem.key}: {problem.reason}" for problem in caught.value.problems]


def test_defaults_are_resolved_and_survive_the_file(tmp_path: Path) -> None:
    resolved = recipe()
    online, loss = resolved.online, resolved.loss
    assert (online.minibatch_size, online.learning_rate, online.save_total_limit) == (16, 1e-4, 2)
    assert (loss.name, loss.beta, loss.alpha) == ("tdpo2", 0.1, 0.5)
    assert (resolved.pairs, resolved.updates) == (16, 16)
    assert recipe("model.lora=null").online.learning_rate == 5e-6, "as that of other runs on pairs"
    assert recipe("online.minibatch_size=4", "online.passes=3", "online.iterations=2").updates == 24
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(resolved), encoding="utf-8")
    assert load_recipe(path) == resolved


def test_distillation_needs_no_reward_and_pairs_all_responses() -> None:
    resolved = recipe(given=DISTILLING)
    assert (resolved.pairs, resolved.online.minibatch_size, resolved.rewards) == (32, 32, None)
    assert resolved.loss.kl is not None and (resolved.loss.kl.coefficient, resolved.loss.kl.on) == (1.0, "both")
    assert recipe("rewards=[{function: 'r.py:f'}]", given=DISTILLING).rewards, "which is logged"


def test_a_reference_that_moves_reaches_the_trainer() -> None:
    assert online_arguments(recipe()).moving_reference is None and "reference_update: null" in dump_recipe(recipe())
    args = online_arguments(recipe("online.reference_update={}"))
    assert args.moving_reference == ReferenceUpdate(every=1, weight=1.0)
    args = online_arguments(recipe("online.reference_update.every=4", "model.lora=null",
                                   "online.reference_update.weight=0.6"))  # fmt: skip
    assert args.moving_reference == ReferenceUpdate(every=4, weight=0.6)
    stored = recipe("online.reference_update.every=4")
    with pytest.raises(ValueError, match=r"online.reference_update.every: the run has 4, the recipe 2"):
        check_resumable(stored, recipe("online.reference_update.every=2"))
    with pytest.raises(ValueError, match=r"online.reference_update"):
        check_resumable(stored, recipe())


def test_every_value_reaches_the_trainer() -> None:
    args = online_arguments(recipe(
        "online.iterations=3", "online.passes=2", "online.minibatch_size=8", "online.micro_batch_size=2",
        "online.min_margin=0.25", "online.eval_every=2", "online.save_every=3", "online.precision=bfloat16",
        "rollouts.completions=96", "rollouts.samples_per_prompt=6", "rollouts.max_new_tokens=7",
        "rollouts.missing_end_penalty=0.5", "rollouts.show_every=null", "rollouts.batch_size=5",
        "loss.name=dpo", "loss.beta=0.3", "loss.label_smoothing=0.1", "loss.kl.direction=reverse", "seed=9",
    ))  # fmt: skip
    assert (args.iterations, args.passes) == (3, 2)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert (args.min_margin, args.missing_end_penalty, args.show_every, args.rollout_batch_size) == (0.25, 0.5, None, 5)
    assert (args.completions, args.samples_per_prompt, args.max_new_tokens, args.seed) == (96, 6, 7, 9)
    assert (args.loss, args.beta, args.label_smoothing, args.precision) == ("dpo", 0.3, 0.1, "bfloat16")
    assert args.kl_term is not None and (args.kl_term.direction, args.kl_term.coefficient) == ("reverse", 0.1)
    # An iteration has 16 pairs, and so 2 × 2 updates.
    assert (args.total_updates, args.eval_steps, args.save_steps) == (12, 8, 12)


@pytest.mark.parametrize(
    ("given", "overrides", "problem"),
    [
        (OWN, [], "rewards: is missing: prompts come without a reward"),
        (DISTILLING, ["model.reference=null"], "model.reference: is null, but loss.name kl learns from a teacher"),
        (DISTILLING, ["online.min_margin=0.1"], "online.min_margin: has no effect with loss kl"),
        (DISTILLING, ["rollouts.missing_end_penalty=1"], "rollouts.missing_end_penalty: has no effect with loss kl"),
        (DISTILLING, ["loss.kl.on=chosen"], "loss.kl.on: chosen has no effect"),
        (DISTILLING, ["rollouts.completions=9", "rollouts.samples_per_prompt=3"], "samples_per_prompt: is 3: loss kl"),
        (MINIMAL, ["rollouts.samples_per_prompt=1"], "rollouts.samples_per_prompt: is 1: a pair needs two responses"),
        (MINIMAL, ["online.minibatch_size=5"], "online.minibatch_size: 5 does not divide the pairs of an iteration, "),
        (MINIMAL, ["online.micro_batch_size=3"], "online.micro_batch_size: 3 does not divide online.minibatch_size 16"),
        (MINIMAL, ["rewards=[{function: 'r.py:f'}]"], "rewards: has no effect beside environment"),
        (MINIMAL, ["loss.name=dpo", "loss.alpha=0.1"], "loss.alpha: has no effect with loss.name dpo"),
        (DISTILLING, ["online.reference_update={}"], "online.reference_update: has no place with loss kl"),
        (MINIMAL, ["online.reference_update={}", "model.reference=other"], "online.reference_update: moves the polic"),
        (MINIMAL, ["online.reference_update.every=16"], "online.reference_update.every: 16 has no effect: the refer"),
        (MINIMAL, ["online.reference_update.weight=0.5"], "online.reference_update.weight: 0.5 would average the two"),
        (MINIMAL, ["online.reference_update.weight=0"], "online.reference_update.weight: expected a number > 0 and ≤"),
        (MINIMAL, ["online.reference_update={}", "loss.name=sft"], "online.reference_update: has no effect with loss"),
        (MINIMAL, ["online.sync_ref_model=true"], "did you mean online.reference_update?"),
        (MINIMAL, ["kl.form=exact"], "kl: belongs to a PPO recipe, not to one with a section online; see loss.kl"),
        (MINIMAL, ["training.epochs=1"], "training: belongs to a recipe for preferences, not to one with "),
        (MINIMAL, ["ppo.epochs=1"], "online: makes a recipe one on pairs of own responses, and ppo one of PPO"),
        (MINIMAL, ["online.epochs=1"], "online.epochs: unknown key; did you mean online.passes?"),
        (MINIMAL, ["rollouts.temperature=1"], "rollouts.temperature: there is no such key: the gradient is"),
        (OWN, ["online.eval_every=1", "rewards=[{function: 'r.py:f'}]"], "online.eval_every: has no effect without"),
        (MINIMAL, ["model.lora=null", "rollouts.merge_adapter=false"], "rollouts.merge_adapter: has no effect with "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(given: dict[str, Any], overrides: list[str], problem: str) -> None:
    assert any(problem in found for found in problems(*overrides, given=given)), problems(*overrides, given=given)


def test_a_run_goes_on_with_its_own_recipe_alone() -> None:
    stored = recipe()
    changed = check_resumable(stored, recipe("online.micro_batch_size=4", "rollouts.batch_size=8"))
    assert changed.keys() == {"online.micro_batch_size", "rollouts.batch_size"}
    for other in ("online.passes=2", "environment.name=brevity", "online.iterations=17"):
        with pytest.raises(ValueError, match=other.partition("=")[0]):
            check_resumable(stored, recipe(other))
    constant = "online.scheduler=constant"
    assert check_resumable(recipe(constant), recipe(constant, "online.iterations=17")).keys() == {"online.iterations"}
    of_ppo = load_recipe({"run_dir": "runs/x", "ppo": {}, "environment": {"name": "sentiment"}})
    with pytest.raises(ValueError, match=r"one on pairs of own responses \(`tdpo train`\), the recipe is one of PPO"):
        check_resumable(stored, of_ppo)


def test_its_keys_are_listed_once() -> None:
    keys = [row.key for row in only_in_online()]
    assert {"online", "online.passes", "online.min_margin"} <= {*keys}
    assert not [key for key in keys if key.startswith(("rollouts", "loss", "prompts", "rewards", "model"))]
    assert {"rollouts.completions", "loss.kl.direction"} <= {row.key for row in documented_keys(OnlineRecipe)}
