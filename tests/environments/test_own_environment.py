"""An environment that a recipe names by files and functions: what is read, refused and tried, and the example."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tdpo.cli.app import app
from tdpo.config import EnvironmentChoice, PPORecipe, load_recipe
from tdpo.environments import Environment, FunctionError, RewardError, load_environment, load_function, score
from tdpo.preferences import UnreadablePreferences
from tdpo.records.json_files import read_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_environment"
FUNCTIONS = """
def brevity(prompts, completions, answer, **columns):
    return [a - len(c) for a, c in zip(answer, completions)]

def no_columns(prompts, completions):
    return [0.0 for _ in completions]

def no_completions(prompts, responses, **columns):
    return [0.0 for _ in prompts]

def broken_inside(prompts, completions, **columns):
    return [len(None) for _ in completions]

def leaves(prompts, completions, **columns):
    import sys
    sys.exit(0)

def meddles(prompts, completions, answer, **columns):
    rewards = [len(c) for c in completions]
    for text in prompts:
        text.clear() if isinstance(text, list) else None
    prompts[:], answer[:], completions[:] = ["other"], [0], []
    return rewards

def mode_that_leaves(prompt, completion, **columns):
    raise SystemExit(0)

def mode_that_meddles(prompt, completion, tags, **columns):
    prompt.clear(), tags.append("new")
    return "one"

def first_word(prompt, completion, **columns):
    return completion.split()[0].lower() if completion.split() else None
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FUNCTIONS, encoding="utf-8")
    write("p.jsonl", *({"prompt": f"question {i}", "answer": i} for i in range(3)))
    write("h.jsonl", {"prompt": "kept aside", "answer": 7})


def write(name: str, *rows: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def loaded(**changes: Any) -> Environment:
    given = {"prompts": "p.jsonl", "held_out": "h.jsonl", "reward": "mine.py:brevity", "max_new_tokens": 8, **changes}
    return EnvironmentChoice.model_validate(given).load()


def call(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments), catch_exceptions=False)


def test_files_and_function_become_an_environment() -> None:
    found = loaded(threshold=0.5)
    assert [prompt.id for prompt in found.train] == ["p.jsonl:1", "p.jsonl:2", "p.jsonl:3"]
    assert [prompt.id for prompt in found.held_out] == ["h.jsonl:1"]
    assert (found.name, found.reward_name, found.max_new_tokens, found.threshold) == ("p", "brevity", 8, 0.5)
    assert score(found, found.train[1:], ["", "four"]) == [1.0, -2.0]
    assert found.mode_of is None and found.modes_of(found.train[0]) == ()
    assert loaded(held_out=None).held_out == [] and loaded(reward_name="short").reward_name == "short"


def test_a_name_loads_the_built_in_one() -> None:
    found, known = EnvironmentChoice(name="keywords").load(), load_environment("keywords")
    assert (found.train, found.reward, found.threshold) == (known.train, known.reward, known.threshold)


def test_known_modes_are_a_column_and_a_function_tells_which() -> None:
    write("p.jsonl", {"prompt": "yes or no?", "answer": 1, "modes": ["yes", "no"]}, {"prompt": "why?", "answer": 1})
    found = loaded(mode_of="mine.py:first_word")
    assert found.mode_of is not None
    assert [found.modes_of(prompt) for prompt in found.train] == [("yes", "no"), ()]
    assert [found.mode_of(found.train[0], text) for text in ("Yes it is", "no", "")] == ["yes", "no", None]
    assert found.mode_of(found.train[1], "Because") == "because", "where none are listed every name is one"
    with pytest.raises(
        ValueError, match=r"first_word gave 'maybe' for prompt 'p\.jsonl:1'.*expected one of 'yes', 'no'"
    ):
        found.mode_of(found.train[0], "maybe")
    assert loaded().modes_of(found.train[0]) == (), "without mode_of the column is one like any other"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"modes": "yes"}, r"p\.jsonl:1: the column 'modes' is 'yes'; .* a list of different texts"),
        ({"modes": ["a", "a"]}, "a list of different texts"),
        ({"modes": ["a", 1]}, "a list of different texts"),
        ({"completion": "c"}, r"the column 'completion' has the name of an argument that mode_of gets; rename"),
    ],
)
def test_columns_that_mode_of_cannot_use_are_refused(row: dict[str, Any], message: str) -> None:
    write("p.jsonl", {"prompt": "question", "answer": 1, **row})
    with pytest.raises(UnreadablePreferences, match=message):
        loaded(mode_of="mine.py:first_word")


def test_a_function_without_columns_is_told_to_take_them() -> None:
    found = loaded(reward="mine.py:no_columns")
    with pytest.raises(
        RewardError, match=r"unexpected keyword argument 'answer'.*; add \*\*columns to its arguments.*\(answer"
    ):
        score(found, found.train, ["a", "b", "c"])
    found = loaded(reward="mine.py:no_completions")
    with pytest.raises(
        RewardError, match=r"; it gets prompts=, completions= and every column .* by its name \(answer\)"
    ):
        score(found, found.train[:1], ["a"])


def test_an_error_inside_the_function_is_not_taken_for_a_wrong_signature() -> None:
    found = loaded(reward="mine.py:broken_inside")
    with pytest.raises(RewardError, match="has no len") as caught:
        score(found, found.train[:1], ["a"])
    assert "columns" not in str(caught.value)


def recipe_of(kind: str, model: Path) -> list[str]:
    write("pairs.jsonl", *({"prompt": f"q {i}", "chosen": " good", "rejected": " bad"} for i in range(4)))
    part = "ppo: {iterations: 1}\nrollouts: {completions: 32, samples_per_prompt: 2}\n"
    Path("recipe.yaml").write_text(
        f"run_dir: run\nmodel: {{name: '{model}'}}\n"
        + (part if kind == "ppo" else "data: {train: pairs.jsonl}\n")
        + "environment: {prompts: p.jsonl, held_out: h.jsonl, reward: 'mine.py:brevity', max_new_tokens: 8}\n"
    )
    return ["doctor", "recipe.yaml"]


@pytest.mark.parametrize("kind", ["ppo", "preferences"])
def test_doctor_tries_the_reward(kind: str, tiny_folder: Callable[[str], Path]) -> None:
    doctor = recipe_of(kind, tiny_folder("llama"))
    assert isinstance(load_recipe("recipe.yaml"), PPORecipe) == (kind == "ppo")
    done = call(*doctor)
    assert done.exit_code == 0, done.output
    assert "p: 3 prompts to train on, 1 held out, reward brevity" in done.output
    assert "p.jsonl:1 gives '' 0, 'A short answer.' -15; h.jsonl:1 gives '' 7, 'A short answer.' -8" in done.output
    assert "columns for it: answer" in done.output
    modes = call(*doctor, "environment.mode_of=mine.py:first_word")
    assert modes.exit_code == 0 and "modes [None, 'a']" in modes.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["environment.reward=mine.py:no_columns"], "add **columns to its arguments"),
        (["environment.reward=mine.py:brevty"], "did you mean 'brevity'?"),
        (["environment.prompts=none.jsonl"], "none.jsonl"),
        (["environment.held_out=none.jsonl"], "none.jsonl"),
        (["environment.mode_of=mine.py:brevity"], "mine.py:brevity raised TypeError"),
    ],
)
@pytest.mark.parametrize("kind", ["ppo", "preferences"])
def test_doctor_names_what_training_would_stumble_over(
    kind: str, overrides: list[str], message: str, tiny_folder: Callable[[str], Path]
) -> None:
    done = call(*recipe_of(kind, tiny_folder("llama")), *overrides)
    assert done.exit_code == 1 and message in done.output, done.output
    assert done.output.strip().splitlines()[-1] == "1 problem: environment"


def test_pairs_of_held_out_prompts_need_some(tiny_folder: Callable[[str], Path]) -> None:
    recipe_of("preferences", tiny_folder("llama"))
    done = call("pairs", "recipe.yaml", "--split", "held_out", "--out", "o.jsonl", "environment.held_out=null")
    assert done.exit_code == 2 and "set environment.held_out" in done.output


TINY = [
    "model={name: 'MODEL', dtype: float32, lora: {rank: 2}}", "environment.max_new_tokens=8", "training.max_steps=2",
]  # fmt: skip


def test_the_example_runs_from_pairs_to_the_evaluation(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "examples" / "own_environment")
    recipe = "examples/own_environment/recipe.yaml"
    tiny = [text.replace("MODEL", str(tiny_folder("llama"))) for text in TINY]
    for command in (["pairs", recipe, *tiny], ["doctor", recipe, *tiny], ["train", recipe, *tiny],
                    ["evaluate", "runs/own_environment"], ["report", "runs/own_environment"]):  # fmt: skip
        done = call(*command)
        assert done.exit_code == 0, f"{command}: {done.output}"
    found = read_json(Path("runs/own_environment/evaluation.json"))
    assert found is not None
    assert (found["settings"]["environment"], found["settings"]["reward"]) == ("prompts", "alliteration")
    assert found["settings"]["prompts"] == 8 and found["generations"]["trained"]["count"] == 32
    without = call("evaluate", "runs/own_environment", "environment.held_out=null")
    assert without.exit_code == 2 and "set environment.held_out to a file of prompts" in without.output


def test_the_reward_of_the_example() -> None:
    found = EnvironmentChoice(
        prompts=str(EXAMPLE / "prompts.jsonl"), reward=f"{EXAMPLE / 'reward.py'}:alliteration", max_new_tokens=24
    ).load()
    bears = [found.train[0]] * 5
    answers = [
        "Big brown bears bring berries.",
        "Bears bears bears bears bears.",
        "Some bears like honey a lot.",
        "",
        "ß",
    ]
    assert score(found, bears, answers) == pytest.approx([1.0, 0.2, 1 / 6, 0.0, 0.0])


def test_the_splits_of_the_example_are_disjoint() -> None:
    train, held_out = ((EXAMPLE / name).read_text(encoding="utf-8") for name in ("prompts.jsonl", "held_out.jsonl"))
    assert not set(train.splitlines()) & set(held_out.splitlines())


@pytest.mark.slow
def test_ppo_learns_from_an_environment_of_ones_own(tiny_folder: Callable[[str], Path]) -> None:
    recipe_of("ppo", tiny_folder("llama"))
    small = ["rollouts.completions=8", "ppo.minibatch_size=8", "ppo.epochs=1"]
    done = call("ppo", "recipe.yaml", *small)
    assert done.exit_code == 0, done.output
    data = read_json(Path("run/data.json"))
    assert data is not None and data["eval"]["prompts"] == 1
    assert call("evaluate", "run").exit_code == 0


@pytest.mark.parametrize("kind", ["ppo", "pairs", "doctor"])
def test_a_reward_that_exits_does_not_end_a_command_as_if_all_was_well(
    kind: str, tiny_folder: Callable[[str], Path]
) -> None:
    recipe_of("ppo" if kind == "ppo" else "preferences", tiny_folder("llama"))
    more = ["--out", "o.jsonl"] if kind == "pairs" else []
    done = call(kind, "recipe.yaml", *more, "environment.reward=mine.py:leaves")
    assert done.exit_code == (1 if kind == "doctor" else 2), done.output
    assert "reward 'leaves' raised SystemExit: 0 (prompt 'p.jsonl:" in done.output
    assert not Path("o.jsonl").exists()


def test_a_reward_that_meddles_changes_nothing_of_the_pairs(tiny_folder: Callable[[str], Path]) -> None:
    chats = [{"prompt": [{"role": "user", "content": f"question {i}"}], "answer": i} for i in range(3)]
    write("p.jsonl", *chats)
    recipe_of("preferences", tiny_folder("llama"))
    done = call(
        "pairs", "recipe.yaml", "--out", "o.jsonl", "environment.reward=mine.py:meddles", "environment.held_out=null"
    )
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert {row["prompt"][0]["content"] for row in rows} <= {f"question {i}" for i in range(3)} and rows


def test_a_function_of_modes_neither_exits_nor_meddles() -> None:
    write("p.jsonl", {"prompt": [{"role": "user", "content": "q"}], "answer": 1, "tags": ["x"]})
    found = loaded(mode_of="mine.py:mode_that_leaves", held_out=None)
    assert found.mode_of is not None
    with pytest.raises(ValueError, match="mode_that_leaves raised SystemExit: 0"):
        found.mode_of(found.train[0], "text")
    found = loaded(mode_of="mine.py:mode_that_meddles", held_out=None)
    assert found.mode_of is not None
    assert [found.mode_of(found.train[0], "text") for _ in range(2)] == ["one", "one"]
    assert found.train[0].prompt == [{"role": "user", "content": "q"}] and found.train[0].columns["tags"] == ["x"]


@pytest.mark.parametrize("how", ["raise SystemExit(0)", "raise GeneratorExit('out')"])
def test_a_file_that_exits_while_it_is_imported_is_named(how: str) -> None:
    Path("leaving.py").write_text(f"def reward(**columns):\n    return []\n\n{how}\n")
    for spec in ("leaving.py:reward", "leaving:reward"):
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(FunctionError, match=rf"{spec}: importing it raised .*"),
        ):
            patch.syspath_prepend(".")
            load_function(spec)
