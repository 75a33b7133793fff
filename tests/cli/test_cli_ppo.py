"""`tdpo ppo` and the other commands on PPO recipes, with a stand-in for the training itself."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tdpo.cli.ppo import ppo_recipe
from tdpo.cli.recipe import load_ppo_example
from tdpo.config import PPORecipe, load_recipe
from tdpo.environments import Environment, Prompt
from tdpo.records.json_files import read_json
from tdpo.runs import RunDirectory, mark_complete

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def _small_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(f"p{i}", f"prompt {i}") for i in range(6)]
    made = Environment("sentiment", prompts[:4], prompts[4:], lambda **_: [], "letters", 8, "a test")
    monkeypatch.setattr("tdpo.environments.load_environment", lambda name: made)


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A PPO recipe of two updates on a tiny model."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}'}}\nenvironment: {{name: sentiment}}\n"
        "rollouts: {completions: 8, samples_per_prompt: 2}\nppo: {iterations: 2, epochs: 1, minibatch_size: null}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def preferences_file(tmp_path: Path) -> Path:
    path = tmp_path / "preferences.yaml"
    path.write_text("run_dir: preferences\ndata: {train: pairs.jsonl}\nenvironment: {name: sentiment}\n")
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PPORecipe, bool]]:
    """What the stand-in for `train_ppo` was called with; it writes what the real one writes, or is interrupted."""
    calls: list[tuple[PPORecipe, bool]] = []

    def train_ppo(
        recipe: Any, run: Any, *, resume: bool = False, progress: Any = None, say: Any = None, **_: Any
    ) -> dict[str, Any]:
        calls.append((recipe, resume))
        run.begin()
        progress(1, recipe.updates, "reward 0.3")
        run.set_status("running", step=1)
        if recipe.seed == 13 and not resume:
            checkpoint = run.path / "checkpoint-1"
            checkpoint.mkdir()
            mark_complete(checkpoint)
            (run.path / "checkpoint-2").mkdir()
            raise KeyboardInterrupt
        progress(recipe.updates, recipe.updates, "reward 0.6")
        run.set_status("running", step=recipe.updates)
        (run.path / "model").mkdir()
        return {"steps": recipe.updates}

    module = types.ModuleType("tdpo.workflows.ppo")
    module.train_ppo = train_ppo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tdpo.workflows.ppo", module)
    return calls


# Training


def test_ppo_trains_as_the_recipe_says(call: Call, recipe_file: Path, trained: list[Any]) -> None:
    done = call("ppo", str(recipe_file), "kl.coefficient=0.2")
    assert done.exit_code == 0, done.output
    assert "2 of 2" in done.output and "reward 0.6" in done.output and "the model is in run/model" in done.output
    ((recipe, resume),) = trained
    assert isinstance(recipe, PPORecipe) and recipe.kl.coefficient == 0.2 and not resume
    status = read_json(Path("run/status.json"))
    assert (status["state"], status["step"], status["max_steps"]) == ("finished", 2, 2)
    assert load_recipe("run") == recipe


def test_a_run_that_was_moved_goes_on_where_it_is(call: Call, recipe_file: Path, trained: list[Any]) -> None:
    assert call("ppo", str(recipe_file), "seed=13").exit_code == 130
    Path("run").rename("moved")
    done = call("ppo", "moved", "--resume")
    assert done.exit_code == 0, done.output
    assert trained[-1][0].run_dir == "moved" and trained[-1][1] and not Path("run").exists()


def test_messages_hold_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    """`:x:` is an emoji to rich, and part of a file's and a function's name to everybody else."""
    from tdpo.cli._console import say, write

    say("none.py:x: no such file")
    write("none.py:x: no such file")
    assert capsys.readouterr() == ("none.py:x: no such file\n", "none.py:x: no such file\n")


def test_a_finished_run_is_neither_repeated_nor_replaced_unasked(
    call: Call, recipe_file: Path, trained: list[Any]
) -> None:
    assert call("ppo", str(recipe_file)).exit_code == 0
    again = call("ppo", str(recipe_file))
    assert again.exit_code == 2 and "--overwrite replaces it" in again.output
    finished = call("ppo", "run", "--resume")
    assert finished.exit_code == 0 and "run is finished (step 2); `tdpo evaluate run` judges it" in finished.output
    other = call("ppo", "run", "--resume", "kl.coefficient=0.3")
    assert other.exit_code == 2 and "kl.coefficient: the run has 0.05, the recipe 0.3" in other.output
    longer = call("ppo", "run", "--resume", "ppo.iterations=3")
    assert longer.exit_code == 2 and "a falling learning rate is laid out over the whole length" in longer.output
    assert len(trained) == 1
    assert call("ppo", str(recipe_file), "--overwrite").exit_code == 0 and len(trained) == 2


def test_an_interrupted_run_says_how_it_goes_on_and_does(call: Call, recipe_file: Path, trained: list[Any]) -> None:
    stopped = call("ppo", str(recipe_file), "seed=13")
    assert stopped.exit_code == 130
    assert "run stopped at step 1 of 2; the checkpoint of step 1 is kept" in stopped.output
    assert "Continue: tdpo ppo run --resume" in stopped.output
    resumed = call("ppo", "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resuming run from step 1" in resumed.output and "checkpoint-2 is incomplete" in resumed.output
    assert trained[-1][1] is True


def test_a_longer_run_goes_on_where_the_rate_is_constant(call: Call, recipe_file: Path, trained: list[Any]) -> None:
    assert call("ppo", str(recipe_file), "ppo.scheduler=constant").exit_code == 0
    Path("run/model").rmdir()
    assert call("ppo", "run", "--resume", "ppo.iterations=3").exit_code == 0
    assert [recipe.updates for recipe, _ in trained] == [2, 3]


def test_a_function_for_other_commands(recipe_file: Path, trained: list[Any]) -> None:
    recipe = load_ppo_example("ppo_sentiment", ["run_dir=run"])
    assert ppo_recipe(recipe) == {"steps": recipe.updates}
    assert ppo_recipe(recipe, resume=True) == {}


# The wrong kind of recipe, and other mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe.yaml"], "recipe.yaml is a PPO recipe (it has a section ppo); `tdpo ppo recipe.yaml` trains"),
        (["pairs", "recipe.yaml"], "makes its own responses: `tdpo ppo recipe.yaml`"),
        (["ppo", "preferences.yaml"], "is a recipe for preferences (it has no section ppo); `tdpo train preferences.y"),
        (["ppo", "recipe.yaml", "--resume", "--overwrite"], "give one of them"),
        (["ppo", "kl.coefficient=1"], "the recipe file comes first: tdpo ppo recipe.yaml kl.coefficient=0.1"),
        (["ppo", "recipe.yaml", "kl.coef=1"], "did you mean kl.coefficient?"),
        (["ppo", "recipe.yaml", "kl.form=exact"], "has no gradient at that position; use place: loss"),
        (["ppo", "recipe.yaml", "loss.beta=1"], "loss: belongs to a recipe for preferences"),
        (["train", "preferences.yaml", "kl.form=exact"], "kl: belongs to a PPO recipe: add a section ppo"),
        (["ppo", "recipe.yaml", "--kl.form=exact"], "Overrides have no dashes: kl.form=VALUE"),
        (["recipe", "kl.coeficient"], "did you mean kl.coefficient?"),
    ],
)  # fmt: skip
def test_mistakes_end_with_a_message_and_code_2(
    call: Call, recipe_file: Path, preferences_file: Path, trained: list[Any], arguments: list[str], message: str
) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and message in done.output, done.output
    assert "Traceback" not in done.output and trained == []


def test_a_run_of_the_other_kind_is_not_resumed(
    call: Call, recipe_file: Path, preferences_file: Path, trained: list[Any]
) -> None:
    RunDirectory("preferences").create(load_recipe(preferences_file))
    done = call("ppo", str(recipe_file), "run_dir=preferences", "--resume")
    assert (
        done.exit_code == 2 and "the run is one on preferences (`tdpo train`), the recipe is one of PPO" in done.output
    )


# doctor, recipe, generate, merge, evaluate


def test_doctor_checks_a_recipe_with_an_environment(call: Call, recipe_file: Path) -> None:
    done = call("doctor", str(recipe_file), "rollouts.completions=16")
    assert done.exit_code == 0, done.output
    for text in ("sampled reverse KL in the reward", "run is free", "sentiment: 4 prompts to train on, 2 held out",
                 "2 updates of 16 completions: 2 iterations of 16 completions to 8 prompts, 1 pass each",
                 "an iteration asks 8 prompts and there are 4", "llama, 2 layers, hidden size 32"):  # fmt: skip
        assert text in done.output
    assert not Path("run").exists()


def own_prompts(*rows: dict[str, Any]) -> list[str]:
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("mine.py").write_text("def brevity(completions, **_):\n    return [-len(c) for c in completions]\n")
    return ["environment=null", "prompts.train=p.jsonl", "rollouts.max_new_tokens=8"]


def test_doctor_checks_prompts_and_rewards_of_ones_own(call: Call, recipe_file: Path) -> None:
    prompts = own_prompts(*({"prompt": f"question {i}", "answer": i} for i in range(9)))
    model, judge = load_recipe(recipe_file).model.name, reward_model(256)
    rewards = f"rewards=[{{function: 'mine.py:brevity', weight: 0.5}}, {{model: '{judge}'}}]"
    done = call("doctor", str(recipe_file), *prompts, rewards, f"ppo.value_model={model}")
    assert done.exit_code == 0, done.output
    for text in ("prompts of p.jsonl", "p.jsonl: 9 prompts; columns for the reward: answer", "rewards[0]",
                 "mine.py:brevity, weight 0.5: p.jsonl:1 gives '' 0, 'A short answer.' -15; columns for it: answer",
                 "rewards[1].model", "judge, weight 1: p.jsonl:1 gives '' ", "ppo.value_model"):  # fmt: skip
        assert text in done.output


def test_doctor_says_which_held_out_prompts_are_trained_on(call: Call, recipe_file: Path) -> None:
    prompts = own_prompts(*({"prompt": f"question {i}"} for i in range(9)))
    Path("h.jsonl").write_text('{"prompt": "question 3"}\n{"prompt": "question 9"}\n', encoding="utf-8")
    reward = "rewards=[{function: 'mine.py:brevity'}]"
    said = call("doctor", str(recipe_file), *prompts, reward, "prompts.eval=h.jsonl").output
    assert "1 of 2 held-out prompts are also trained on: their numbers" in said
    assert "p.jsonl:1 gives" in said and "h.jsonl:1 gives" in said
    said = call("doctor", str(recipe_file), *prompts, reward, "prompts.eval=p.jsonl").output
    assert "9 of 9 held-out prompts are also trained on" in said and said.count("p.jsonl:1 gives") == 1


def reward_model(positions: int) -> Path:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from helpers.tiny_models import build_tokenizer

    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, max_position_embeddings=positions, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained("judge")
    build_tokenizer().save_pretrained("judge")
    return Path("judge").resolve()


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ("{{model: '{model}'}}", "lacks weights"),
        ("{{model: '{judge}'}}", "prompt 'p.jsonl:1' has"),
        ("{{function: 'mine.py:leaves'}}", "reward 'leaves' raised SystemExit"),
        ("{{function: 'mine.py:no_columns'}}", "reward 'no_columns' cannot be called; add **columns"),
    ],
)
def test_doctor_finds_what_ppo_refuses(rewards: str, reason: str, call: Call, recipe_file: Path) -> None:
    prompts = own_prompts(*({"prompt": f"question {i}", "answer": i} for i in range(9)))
    with Path("mine.py").open("a") as file:
        file.write(
            "def leaves(**_):\n    raise SystemExit(0)\n\ndef no_columns(prompts, completions):\n    return []\n"
        )
    given = f"rewards=[{rewards.format(model=load_recipe(recipe_file).model.name, judge=reward_model(12))}]"
    done = call("doctor", str(recipe_file), *prompts, given)
    assert done.exit_code == 1 and reason in done.output, done.output
    done = call("ppo", str(recipe_file), *prompts, given)
    assert done.exit_code == 2 and reason in done.output, done.output


def test_doctor_lists_all_problems(call: Call, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = own_prompts({"prompt": "a"}, {"prompt": ""})
    monkeypatch.setattr("tdpo.workflows.prerequisites.find_spec", lambda name: None)
    rewards = "rewards=[{function: 'mine.py:brevty'}, {model: ./none}]"
    done = call("doctor", str(recipe_file), *prompts, rewards, "ppo.report_to=[wandb]")
    assert done.exit_code == 1
    assert done.output.strip().splitlines()[-1] == "4 problems: packages, prompts, rewards[0], rewards[1].model"
    assert "p.jsonl:2: prompt: is empty" in done.output and "did you mean 'brevity'?" in done.output


def test_recipe_shows_keys_of_both_kinds(call: Call) -> None:
    listed = call("recipe").output
    assert "In a PPO recipe (it has a section ppo)" in listed
    assert "kl.form  default sampled; one of sampled, exact" in listed and "rewards[].weight" in listed
    assert listed.count("\nmodel.name  ") == 1, "what both kinds share is listed once"
    one = call("recipe", "rewards").output
    assert "rewards[].function  default null" in one and "kl" not in one
    assert "In a PPO recipe" not in call("recipe", "loss").output


def test_the_example_recipe_loads(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(call("recipe", "--example", "ppo_sentiment").stdout, encoding="utf-8")
    assert isinstance(load_recipe(tmp_path / "mine.yaml"), PPORecipe)


@pytest.mark.slow
def test_generate_and_merge_read_a_ppo_run(call: Call, recipe_file: Path) -> None:
    from tdpo.models import LoraSettings, add_lora, load_causal_lm, load_tokenizer

    recipe = load_recipe(recipe_file)
    RunDirectory("run").create(recipe)
    too_early = call("generate", "run", "-p", "question")
    assert too_early.exit_code == 2 and "`tdpo ppo run --resume`" in too_early.output
    add_lora(load_causal_lm(recipe.model.name), LoraSettings()).save_pretrained("run/model")
    load_tokenizer(recipe.model.name).save_pretrained("run/model")
    ask = ["-p", "question 1", "--temperature", "0", "--max-new-tokens", "4", "--json"]
    both = [json.loads(line) for line in call("generate", "run", *ask, "--base").stdout.splitlines()]
    assert [entry["model"] for entry in both] == ["base", "trained"]
    assert call("merge", "run", "merged").exit_code == 0
    assert Path("merged/config.json").exists() and not Path("merged/adapter_config.json").exists()


def test_evaluate_refuses_what_says_how_the_run_was_trained(call: Call, recipe_file: Path) -> None:
    RunDirectory("run").create(load_recipe(recipe_file))
    refused = call("evaluate", "run", "ppo.epochs=3")
    assert refused.exit_code == 2 and "it says how the run was trained" in refused.output
