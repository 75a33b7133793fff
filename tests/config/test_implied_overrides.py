"""An override takes away keys of the file that it leaves without a meaning, says so, and takes nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tdpo.config import Recipe, RecipeError, load_recipe, load_study

DATA: dict[str, Any] = {"run_dir": "runs/x", "data": {"train": "pairs.jsonl"}}
TDPO2 = {"name": "tdpo2", "beta": 0.2, "alpha": 0.7, "label_smoothing": 0.1}


def loaded(values: dict[str, Any], *overrides: str) -> tuple[Recipe, list[str]]:
    said: list[str] = []
    recipe = load_recipe({**DATA, **values}, overrides, say=said.append)
    assert isinstance(recipe, Recipe)
    return recipe, said


@pytest.mark.parametrize(
    ("name", "left", "gone"),
    [
        ("dpo", (0.2, None, 0.1), ["alpha 0.7"]),
        ("tdpo1", (0.2, None, 0.1), ["alpha 0.7"]),
        ("ipo", (0.2, None, 0.0), ["alpha 0.7", "label_smoothing 0.1"]),
        ("sft", (None, None, 0.0), ["beta 0.2", "alpha 0.7", "label_smoothing 0.1"]),
        ("tdpo2", (0.2, 0.7, 0.1), []),
    ],
)
def test_another_loss_takes_the_keys_with_it_that_it_has_not(name: str, left: tuple[Any, ...], gone: list[str]) -> None:
    recipe, said = loaded({"loss": TDPO2}, f"loss.name={name}")
    assert (recipe.loss.beta, recipe.loss.alpha, recipe.loss.label_smoothing) == left
    assert said == [f"loss.{key} of the recipe is left out: loss.name={name} has none" for key in gone]


def test_a_beta_of_sums_is_none_of_means() -> None:
    """0.1 would leave simpo almost without a gradient, and 2 would hold DPO still."""
    recipe, said = loaded({"loss": {"name": "dpo", "beta": 0.1}}, "loss.name=simpo")
    assert (recipe.loss.beta, recipe.loss.gamma) == (2.0, 1.0)
    assert said == [
        "loss.beta 0.1 of the recipe is left out: with loss.name=simpo it scales means over tokens, and sums over "
        "responses before"
    ]
    recipe, said = loaded({"loss": {"name": "simpo", "beta": 2.5, "gamma": 0.8}}, "loss.name=dpo")
    assert (recipe.loss.beta, recipe.loss.gamma) == (0.1, None)
    assert [sentence.partition(" of the recipe")[0] for sentence in said] == ["loss.gamma 0.8", "loss.beta 2.5"]
    recipe, said = loaded({"loss": TDPO2 | {"label_smoothing": 0.0}}, "loss.name=simpo", "loss.beta=0.5")
    assert (recipe.loss.beta, recipe.loss.gamma, len(said)) == (0.5, 0.25, 1), "what an override says stays"


def test_the_file_may_leave_its_loss_to_the_default() -> None:
    recipe, said = loaded({"loss": {"alpha": 0.5}}, "loss.name=dpo", "loss.beta=0.3")
    assert (recipe.loss.beta, recipe.loss.alpha) == (0.3, None) and len(said) == 1
    assert loaded({}, "loss.name=dpo")[1] == [], "nothing was there to be left out"


@pytest.mark.parametrize(
    ("loss", "overrides"),
    [
        (TDPO2, ("loss.name=dpo", "loss.alpha=0.7")),  # both on the command line
        ({}, ("loss={name: tdpo2, alpha: 1.0}", "loss.name=dpo")),
        ({"name": "dpo", "alpha": 0.5}, ("loss.name=tdpo1",)),  # the file contradicts itself
        ({"name": "dpo", "alpha": 0.5}, ("loss.beta=0.3",)),
    ],
)
def test_what_an_override_or_a_wrong_file_says_is_refused(loss: dict[str, Any], overrides: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=r"loss\.alpha: has no effect with loss\.name"):
        loaded({"loss": loss}, *overrides)


@pytest.mark.parametrize("name", ["[dpo]", "dop", "null"])
def test_a_loss_that_there_is_not_takes_nothing(name: str) -> None:
    with pytest.raises(RecipeError, match=r"1 problem.*\n.*loss\.name: expected one of"):
        loaded({"loss": TDPO2}, f"loss.name={name}")


def test_a_length_replaces_the_other_length() -> None:
    recipe, said = loaded({"training": {"epochs": 2.0}}, "training.max_steps=5")
    assert (recipe.training.epochs, recipe.training.max_steps) == (None, 5)
    assert said == ["training.epochs 2.0 of the recipe is left out: training.max_steps=5 replaces it"]
    recipe, said = loaded({"training": {"max_steps": 5}}, "training.epochs=2.0")
    assert (recipe.training.epochs, recipe.training.max_steps) == (2.0, None) and len(said) == 1
    assert loaded({"training": {"epochs": 2.0}}, "training.max_steps=null")[0].training.epochs == 2.0
    with pytest.raises(RecipeError, match="a run has one length"):
        loaded({"training": {"epochs": 2.0}}, "training.epochs=1.0", "training.max_steps=5")


def test_a_study_takes_overrides_alike_and_its_arms_say_all_themselves() -> None:
    arms = [{"name": "dpo", "strengths": [0.1], "set": {"training.max_steps": 3}}]
    values = {"study_dir": "s", "tasks": [{"environment": {"name": "brevity"}}], "training": {"epochs": 2.0}}
    said: list[str] = []
    study = load_study({**values, "arms": arms}, ["training.max_steps=5"], say=said.append)
    assert (study.training.epochs, study.training.max_steps) == (None, 5) and len(said) == 1
    recipe = {**DATA, "training": {"epochs": 2.0}}
    with pytest.raises(RecipeError, match="a run has one length"):
        load_recipe(recipe, ["training.max_steps=5"], replaces=False)


def test_other_held_out_rows_replace_those_of_the_file() -> None:
    drawn = {"data": {"train": "pairs.jsonl", "eval_fraction": 0.1}}
    recipe, said = loaded(drawn, 'data.eval="held.jsonl"')
    assert (recipe.data.eval, recipe.data.eval_fraction) == ("held.jsonl", None)
    assert said == ["data.eval_fraction 0.1 of the recipe is left out: data.eval=held.jsonl replaces it"]
    split = {"data": {"train": "pairs.jsonl", "eval": "org/rows", "eval_split": "validation"}}
    recipe, said = loaded(split, "data.eval=held.jsonl")
    assert (recipe.data.eval, recipe.data.eval_split) == ("held.jsonl", None) and len(said) == 1
    recipe, said = loaded(split, "data.eval_fraction=0.1")
    assert (recipe.data.eval, recipe.data.eval_split, recipe.data.eval_fraction) == (None, None, 0.1)
    assert len(said) == 2
    assert loaded(split, "data.eval_split=dev")[0].data.eval_split == "dev"
