"""Runs on own responses that train on some of the prompts, drawn with the seed."""

from __future__ import annotations

from typing import Any

import pytest

from tdpo.config import load_recipe
from tdpo.environments import drawn_prompts, load_environment
from tdpo.recipe_data.prompts import read_recipe_prompts


def prompts(section: str, count: int | None, seed: int) -> tuple[list[str], list[str]]:
    values = {"run_dir": "x", "seed": seed, "environment": {"name": "categories"}, "rollouts": {"prompts": count}}
    recipe: Any = load_recipe({**values, section: {}})
    train, held_out, described = read_recipe_prompts(recipe)
    assert described["train"]["prompts"] == len(train)
    return [prompt.id for prompt in train], [prompt.id for prompt in held_out]


def test_the_seed_draws_the_prompts_and_all_kinds_of_runs_have_the_same() -> None:
    whole = load_environment("categories")
    all_ids = [prompt.id for prompt in whole.train]
    drawn, held_out = prompts("ppo", 5, 3)
    assert drawn == prompts("online", 5, 3)[0] == [prompt.id for prompt in drawn_prompts(whole.train, 5, 3)]
    assert (
        len(set(drawn)) == 5 and set(drawn) < set(all_ids) and drawn != all_ids[:5] and drawn != prompts("ppo", 5, 4)[0]
    )
    assert held_out == [prompt.id for prompt in whole.held_out]
    assert prompts("ppo", None, 3)[0] == all_ids
    assert set(prompts("ppo", len(all_ids), 3)[0]) == set(all_ids)


def test_more_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollouts\.prompts is 97, and there are 96 prompts to train on"):
        prompts("online", 97, 0)
