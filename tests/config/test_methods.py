"""The table of methods agrees with what recipes, trainers, studies and the exact benchmark call by these names."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tdpo.config import ARM_NAMES, Loss, RecipeError, flatten, load_recipe
from tdpo.config.claims_schema import Opponent
from tdpo.exact.compared_methods import METHODS as EXACT
from tdpo.methods import ARMS, METHODS, REFERENCE, public_name
from tdpo.report.study.arm_styles import COLORS, SYMBOLS
from tdpo.workflows.model_card import model_card

TEACHER = {"reference": "a teacher"}  # which the loss kl asks for, and the others take
ON_PAIRS = [method for method in METHODS.values() if method.learns_from == "pairs"]


def test_every_name_is_in_the_table_and_in_one_order() -> None:
    assert set(get_args(Loss.model_fields["name"].annotation)) == {method.key for method in ON_PAIRS}
    assert tuple(name for name, kind in ARMS.items() if kind.is_trained) == ARM_NAMES
    assert get_args(Opponent) == (REFERENCE, *ARM_NAMES), "baselines have no frontier that could be compared"
    assert list(COLORS) == list(SYMBOLS) == list(ARMS)
    assert {EXACT[key].label for key in ("dpo", "tdpo1", "tdpo2")} == {"DPO", "TDPO1", "TDPO2"}
    assert public_name("TDPO2") == "TDPO2" and public_name("kto") == "kto"


def test_the_arms_of_a_factorial_differ_in_their_factors_alone() -> None:
    """What is compared as direction and as source of the data: the other keys of these arms are the same."""
    by_factors = {(ARMS[name].family, ARMS[name].direction): ARMS[name] for name in (
        "online_dpo_forward", "online_dpo_reverse", "ppo_forward", "ppo_reverse_exact",
    )}  # fmt: skip
    assert set(by_factors) == {(family, d) for family in ("online pairs", "rewards") for d in ("forward", "reverse")}
    for one, other in (("online_dpo_forward", "online_dpo_reverse"), ("ppo_forward", "ppo_reverse_exact"),
                       ("dpo_forward", "dpo_reverse"), ("rloo_forward", "rloo_reverse")):  # fmt: skip
        keys, others = ARMS[one].fixed, ARMS[other].fixed
        assert keys.keys() == others.keys()
        assert [key.rpartition(".")[2] for key in keys if keys[key] != others[key]] == ["direction"]
    assert ARMS["dpo_forward"].fixed == ARMS["online_dpo_forward"].fixed
    assert {**ARMS["ppo_forward"].fixed, "ppo.advantage": "rloo"} == ARMS["rloo_forward"].fixed


@pytest.mark.parametrize("name", [name for name, kind in ARMS.items() if kind.is_trained])
def test_every_arm_makes_a_recipe_at_a_strength_and_at_a_target(name: str) -> None:
    kind = ARMS[name]
    source: dict[str, Any] = {"data": {"train": "p.jsonl"}}
    if kind.kind != "preferences":
        source = {"environment": {"name": "categories"}, kind.kind: {}}
    written = [{**kind.fixed, kind.key: 0.3}]
    written += [{**kind.fixed, **kind.held, kind.target_key: 0.3}] if kind.target_key else []
    for keys in written:
        recipe: Any = load_recipe({"run_dir": "x", **source}, [f"{key}={value}" for key, value in keys.items()])
        resolved = flatten(recipe)
        assert {key: resolved[key] for key in keys} == keys
    if kind.target_key and kind.kind != "ppo":
        assert resolved["loss.kl.direction"] == kind.direction
    assert bool(kind.target_key) == (name not in ("sft", "dpo", "tdpo1"))


@pytest.mark.parametrize("method", ON_PAIRS, ids=lambda method: method.key)
@pytest.mark.parametrize("key", ["beta", "alpha", "gamma", "label_smoothing"])
def test_a_recipe_takes_the_keys_that_the_table_says(method: object, key: str) -> None:
    takes = getattr(method, f"has_{key}")
    values = {"run_dir": "x", "data": {"train": "p.jsonl"}, "loss": {"name": method.key, key: 0.3}, "model": TEACHER}  # type: ignore[attr-defined]
    if takes:
        assert getattr(load_recipe(values).loss, key) == 0.3  # type: ignore[union-attr]
    else:
        with pytest.raises(RecipeError, match=f"loss.{key}: has no effect"):
            load_recipe(values)


def test_a_model_card_names_the_kl_beside_the_loss() -> None:
    loss = {"name": "dpo", "kl": {"direction": "reverse", "on": "both"}}
    recipe: Any = load_recipe({"run_dir": "x", "data": {"train": "p.jsonl"}, "loss": loss})
    assert (
        "- beside the loss: 0.1 × the exact reverse KL(policy‖reference), nats per sequence, along chosen and rejected "
        "responses (their mean)\n"
    ) in model_card(recipe, {}, {"loss": 0.5}, None, {})


@pytest.mark.parametrize("method", ON_PAIRS, ids=lambda method: method.key)
def test_a_model_card_says_what_the_table_says(method: Any) -> None:
    values = {"run_dir": "x", "data": {"train": "p.jsonl"}, "loss": {"name": method.key}, "model": TEACHER}
    recipe: Any = load_recipe(values)
    text = model_card(recipe, {}, {"loss": 0.5, "margin": 0.25}, None, {})
    assert f"| margin{', β × nats per token' if method.key == 'simpo' else ''} | 0.25 |" in text
    assert f"trained with {method.name}\n" in text and f"| loss, {method.loss_unit} | 0.5 |" in text
    settings = f"- loss {method.key}" + (f", beta {2 if method.is_per_token else 0.1}" if method.has_beta else "")
    settings += (", alpha 0.5" if method.has_alpha else "") + (", gamma 1" if method.has_gamma else "")
    settings += ", label smoothing 0" if method.has_label_smoothing else ""
    assert f"{settings}\n" in text
