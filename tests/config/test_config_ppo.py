"""PPO recipes: which schema a file gets, what is resolved, what is refused and with which words."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

from tdpo.config import PPORecipe, Recipe, RecipeError, dump_recipe, flatten, load_recipe
from tdpo.config.ppo_schema import PPO
from tdpo.kl_choices import KLDirection, KLForm, KLPlace, estimator_of, kl_obstacle, shortest_horizon

ROOT = Path(__file__).parents[2]
MINIMAL = {"run_dir": "runs/x", "ppo": {}, "environment": {"name": "sentiment"}}
OWN_PROMPTS = (
    "environment=null",
    "prompts.train=p.jsonl",
    "rollouts.max_new_tokens=8",
    "rewards=[{function: 'r.py:f'}]",
)


def recipe(*overrides: str) -> PPORecipe:
    loaded = load_recipe(MINIMAL, overrides)
    assert isinstance(loaded, PPORecipe)
    return loaded


def problems(*overrides: str, given: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(MINIMAL if given is None else given, overrides)
    return [f"{problem.key}: {problem.reason}" for problem in caught.value.problems]


# Which schema


def test_a_section_ppo_makes_a_recipe_one_of_ppo() -> None:
    assert isinstance(load_recipe(MINIMAL), PPORecipe)
    preferences = {"run_dir": "x", "data": {"train": "p.jsonl"}}
    assert isinstance(load_recipe(preferences), Recipe)
    without = {key: value for key, value in MINIMAL.items() if key != "ppo"}
    assert isinstance(load_recipe(without, ["ppo.epochs=3"]), PPORecipe), "an override may bring the section"


def test_an_empty_section_says_how_its_defaults_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run_dir: x\nenvironment: {name: sentiment}\nppo:\n", encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:3: ppo: expected a section .*got null; ppo: \{\} takes its def"
    ):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "key", "instead"),
    [("loss.beta=1", "loss", "kl"), ("data.train=p.jsonl", "data", "prompts"), ("training.epochs=1", "training", "ppo"),
     ("sampling.top_k=3", "sampling.top_k", "rollouts")],
)  # fmt: skip
def test_sections_of_the_other_kind_say_where_they_belong(override: str, key: str, instead: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(MINIMAL, [override])
    (found,) = caught.value.problems
    assert found.key == key and found.where == f"override {override!r}"
    assert "belongs to a recipe for preferences" in found.reason and found.reason.endswith(f"see {instead}")


@pytest.mark.parametrize("section", ["kl", "rollouts", "prompts", "rewards"])
def test_a_ppo_recipe_without_its_section_says_what_is_missing(section: str) -> None:
    (found,) = problems(given={"run_dir": "x", section: {}})
    assert found.startswith(f"{section}: belongs to a PPO recipe: add a section ppo (`ppo: {{}}` is enough")
    assert ("a section online" in found) == (section != "kl"), "which has the other three as well"


# What is resolved


def test_defaults_are_resolved() -> None:
    resolved = recipe()
    assert (resolved.ppo.learning_rate, resolved.ppo.value_learning_rate) == (1e-4, 1e-3)
    assert (resolved.ppo.minibatch_size, resolved.ppo.save_total_limit) == (32, 2)
    assert (resolved.kl.target, resolved.kl.horizon) == (6.0, 10_000)


def test_defaults_that_depend_on_other_keys() -> None:
    assert recipe("model.lora=null").ppo.learning_rate == 1e-6
    assert recipe("ppo.value_model=some/critic").ppo.value_learning_rate == 1e-5
    assert recipe("ppo.minibatch_size=null").ppo.minibatch_size == 64
    fixed = recipe("kl.controller=fixed").kl
    assert fixed.target is None and fixed.horizon is None
    assert recipe("ppo.save_every=null").ppo.save_total_limit is None


def test_updates_are_counted() -> None:
    assert recipe().updates == 16 * 4 * 2
    assert recipe("ppo.iterations=3", "ppo.epochs=1", "ppo.minibatch_size=null").updates == 3


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("kl.controller=fixed", "kl.coefficient=0", "ppo.save_every=null", "ppo.minibatch_size=null"),
        ("kl.direction=forward", "kl.form=exact", "kl.place=loss", "model.lora=null", "ppo.eval_every=2"),
        (*OWN_PROMPTS[:3], "prompts.eval=e.jsonl", "ppo.eval_every=1",
         "rewards=[{function: 'a.b:f'}, {model: m, weight: -1}]"),
    ],
)  # fmt: skip
def test_the_resolved_recipe_loads_to_itself(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    resolved = recipe(*overrides)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(resolved), encoding="utf-8")
    assert load_recipe(tmp_path) == resolved
    assert flatten(resolved)["ppo.iterations"] == 16


# The KL

ACCEPTED = {
    ("reverse", "sampled", "reward"): "k1",
    ("reverse", "sampled", "loss"): "k2",
    ("reverse", "exact", "loss"): "exact",
    ("forward", "sampled", "loss"): "k3",
    ("forward", "exact", "loss"): "exact",
}


@pytest.mark.parametrize("choice", list(product(*map(get_args, (KLDirection, KLForm, KLPlace)))), ids=" ".join)
def test_the_table_of_kls(choice: tuple[Any, Any, Any]) -> None:
    overrides = [f"kl.{name}={value}" for name, value in zip(("direction", "form", "place"), choice, strict=True)]
    if choice in ACCEPTED:
        assert kl_obstacle(*choice) is None and estimator_of(*choice) == ACCEPTED[choice]
        recipe(*overrides)
        return
    reason = "has no gradient at that position" if choice[1] == "exact" else "no estimator of the drawn token has"
    with pytest.raises(ValueError, match=reason):
        estimator_of(*choice)
    (found,) = problems(*overrides)
    assert found.startswith("kl.place: reward is refused with") and reason in found and "use place: loss" in found


@pytest.mark.parametrize("choice", [("up", "exact", "loss"), ("reverse", "k1", "loss"), ("reverse", "exact", "head")])
def test_an_unknown_choice_is_no_key_error(choice: tuple[Any, Any, Any]) -> None:
    assert "must be one of" in str(kl_obstacle(*choice))


def test_the_shortest_horizon_is_accepted_and_halves_the_coefficient_at_most() -> None:
    for completions in (1, 5, 64, 100):
        shortest = shortest_horizon(completions)
        assert 0.2 * completions / shortest <= 0.5 < 0.2 * completions / max(shortest - 1, 1e-9)
    assert recipe("kl.horizon=26").kl.horizon == 26


# Refusals

REFUSED = [
    (("kl.coefficient=0",), "kl.coefficient: 0 can never rise under the adaptive controller"),
    (("kl.controller=fixed", "kl.target=3"), "kl.target: has no effect with kl.controller fixed"),
    (("kl.controller=fixed", "kl.horizon=3"), "kl.horizon: has no effect with kl.controller fixed"),
    (("kl.controller=dual", "kl.horizon=300"), "kl.horizon: has no effect with kl.controller dual"),
    (("kl.controller=fixed", "kl.target_direction=forward"), "kl.target_direction: has no effect with kl.controller"),
    (("kl.horizon=25",), "kl.horizon: 25 is so short that one iteration of 64 completions (rollouts.completions)"),
    (("kl.coefficient=-1",), "kl.coefficient: expected a number ≥ 0, got -1"),
    (("rollouts.completions=6", "ppo.minibatch_size=null"),
     "rollouts.samples_per_prompt: 4 does not divide rollouts.completions 6; the nearest below is 3"),
    (("rollouts.completions=48",), "ppo.minibatch_size: 32 does not divide rollouts.completions 48; the nearest below "
                                   "is 24"),
    (("ppo.micro_batch_size=5",), "ppo.micro_batch_size: 5 does not divide ppo.minibatch_size 32; the nearest below"),
    (("ppo.minibatch_size=null", "ppo.micro_batch_size=3"), "3 does not divide ppo.minibatch_size 64"),
    (("rollouts.merge_adapter=false", "model.lora=null"), "rollouts.merge_adapter: has no effect with model.lora null"),
    (("model.dtype=bfloat16", "ppo.precision=bfloat16-mixed"),
     "ppo.precision: bfloat16-mixed holds weights in float32, and model.dtype loads them in bfloat16; remove one"),
    (("ppo.gamma=0",), "ppo.gamma: expected a number > 0 and ≤ 1, got 0"),
    (("ppo.gae_lambda=1.5",), "ppo.gae_lambda: expected a number ≥ 0 and ≤ 1, got 1.5"),
    (("ppo.clip_range=0",), "ppo.clip_range: expected a number > 0, got 0"),
    (("ppo.value_clip_range=0",), "ppo.value_clip_range: expected a number > 0, or null, got 0"),
    (("ppo.scheduler=constant", "ppo.warmup_steps=3"), "ppo.warmup_steps: has no effect with scheduler constant"),
    (("ppo.warmup_steps=2.5",), "ppo.warmup_steps: is 2.5"),
    (("ppo.save_every=null", "ppo.save_total_limit=3"), "has no effect without checkpoints (ppo.save_every is null)"),
    (("environment=null",), "environment: is missing; name one"),
    (("environment={prompts: p.jsonl, reward: 'm.py:f', max_new_tokens: 8}", "ppo.eval_every=1"),
     "ppo.eval_every: has no effect without held-out prompts; set environment.held_out"),
    (("environment={prompts: p.jsonl, reward: 'm.py:f'}",), "environment.max_new_tokens: is missing"),
    (("prompts.train=p.jsonl", "rollouts.max_new_tokens=8"), "prompts: has no effect beside environment"),
    (("rewards=[{model: m}]",), "rewards: has no effect beside environment"),
    (("environment=null", "rewards=[{model: m}]"), "prompts: is missing: rewards judge responses to prompts"),
    (("environment=null", "prompts.train=p.jsonl", "rollouts.max_new_tokens=8"), "rewards: is missing: prompts come "),
    ((*OWN_PROMPTS[:3], "rewards=[]"), "rewards: is an empty list"),
    ((*OWN_PROMPTS[:2], OWN_PROMPTS[3]), "rollouts.max_new_tokens: is missing: prompts of your own name no length"),
    ((*OWN_PROMPTS, "ppo.eval_every=1"), "ppo.eval_every: has no effect without held-out prompts; set prompts.eval"),
    ((*OWN_PROMPTS[:3], "rewards=[{}]"), "rewards[0].model: is null, and so is function"),
    ((*OWN_PROMPTS[:3], "rewards=[{model: m}, {model: m, function: f}]"), "rewards[1].model: is given together with"),
    ((*OWN_PROMPTS[:3], "rewards=[{model: m, weight: 0}]"), "rewards[0].weight: 0 leaves this reward without effect"),
    ((*OWN_PROMPTS[:3], "rewards=[{model: m, weight: .inf}]"), "rewards[0].weight: expected a number, got inf"),
    ((*OWN_PROMPTS[:3], "rewards=[{model: m, wieght: 2}]"), "unknown key; did you mean rewards[0].weight?"),
    ((*OWN_PROMPTS[:3], "rewards=r.py:f"), "got the text 'r.py:f'; a list of one is written [{function: r.py:f}]"),
    ((*OWN_PROMPTS[:3], "rewards={model: m}"), "a list of one is written [{model: m}]"),
    (("ppo.advantage=rloo", "rollouts.samples_per_prompt=1"), "ppo.advantage: rloo compares the responses"),
    (("ppo.advantage=rloo", "ppo.scale_by_group_std=true"), "ppo.scale_by_group_std: has no effect: only"),
    (("ppo.advantage=group", "ppo.gamma=0.9"), "ppo.gamma: has no effect with ppo.advantage group"),
    (("ppo.advantage=rloo", "ppo.value_clip_range=null"), "ppo.value_clip_range: has no effect with"),
    (("ppo.advantage=rloo", "ppo.value_model=m"), "ppo.value_model: has no effect with ppo.advantage rloo"),
    (("rollouts.temperature=0.7",), "rollouts.temperature: there is no such key: the gradient is that of responses"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_words(overrides: tuple[str, ...], message: str) -> None:
    (found,) = problems(*overrides)
    assert message in found


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("kl_coef=1", "kl.coefficient"),
        ("kl.coeficient=1", "kl.coefficient"),
        ("num_ppo_epochs=1", "ppo.epochs"),
        ("ppo.cliprange=1", "ppo.clip_range"),
        ("ppo.lam=1", "ppo.gae_lambda"),
        ("reward_funcs=x", "rewards"),
        ("rollouts.response_length=3", "rollouts.max_new_tokens"),
        ("rollouts.rollout_batch_size=3", "rollouts.batch_size"),
        ("ppo.learning_rte=1", "ppo.learning_rate"),
    ],
)
def test_unknown_keys_name_the_nearest_right_one(override: str, meant: str) -> None:
    (found,) = problems(override)
    assert found.endswith(f"unknown key; did you mean {meant}?")


def test_all_problems_come_together_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run_dir: x\nprompts: {train: p.jsonl}\nrewards:\n  - function: r.py:f\n  - model: m\n    weight: 0\n"
        "  - wight: 2\n    model: m\nrollouts:\n  max_new_tokens: 8\nppo:\n  gama: 1\nloss: {}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert [(problem.key, problem.where) for problem in caught.value.problems] == [
        ("rewards[1].weight", f"{path}:6"),
        ("rewards[2].wight", f"{path}:7"),
        ("ppo.gama", f"{path}:12"),
        ("loss", f"{path}:13"),
    ]


# What comes with the package


def test_the_shipped_recipe_is_one_of_ppo_and_judged_as_the_others() -> None:
    shipped = load_recipe(ROOT / "recipes/ppo_sentiment.yaml")
    other = load_recipe(ROOT / "recipes/sentiment_tdpo2.yaml")
    assert isinstance(shipped, PPORecipe)
    assert (shipped.evaluation, shipped.environment, shipped.model) == (
        other.evaluation,
        other.environment,
        other.model,
    )


def test_the_recipe_of_rloo_differs_from_that_of_ppo_in_what_makes_it_rloo() -> None:
    one, other = (flatten(load_recipe(ROOT / f"recipes/{name}_sentiment.yaml")) for name in ("ppo", "rloo"))
    assert {key for key in one if one[key] != other[key]} == {
        "run_dir", "kl.form", "kl.place", "rollouts.samples_per_prompt", "ppo.advantage", "ppo.value_learning_rate",
    }  # fmt: skip


def test_every_key_of_ppo_has_a_default() -> None:
    PPO()


def test_reading_recipes_loads_no_torch() -> None:
    code = "import sys, tdpo.config, tdpo.environments; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
