"""The commands on a recipe with a section `online`, which trains a tiny model once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from helpers.training_cases import StopAt
from tdpo.config import OnlineRecipe, load_recipe
from tdpo.records.json_files import read_json
from tdpo.report.run_reading import load_runs
from tdpo.runs import RunDirectory
from tdpo.workflows.online import train_online

Call = Callable[..., Result]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> str:
    """A recipe of three iterations with two updates each, on prompts and a reward of one's own."""
    Path("p.txt").write_text("the cat\na dog ran\nwhat a wonderful day\non the mat the\n", encoding="utf-8")
    Path("held_out.txt").write_text("the dog\na mat\n", encoding="utf-8")
    Path("mine.py").write_text("def brevity(completions, **_):\n    return [-float(len(c)) for c in completions]\n")
    Path("recipe.yaml").write_text(
        f"run_dir: run\nmodel: {{name: '{tiny_folder('llama')}', lora: null}}\n"
        "prompts: {train: p.txt, eval: held_out.txt}\nrewards: [{function: 'mine.py:brevity'}]\n"
        "rollouts: {completions: 16, samples_per_prompt: 4, max_new_tokens: 6}\n"
        "online: {iterations: 3, minibatch_size: 2, learning_rate: 1e-2, eval_every: 1}\n"
        "evaluation: {samples_per_prompt: 1}\n",
        encoding="utf-8",
    )
    return "recipe.yaml"


def test_it_trains_resumes_and_is_judged_and_reported(call: Call, recipe_file: str) -> None:
    moves = "online.reference_update={every: 2, weight: 0.5}"
    done = call("train", recipe_file, moves)
    assert done.exit_code == 0, done.output
    for text in (
        "It moves: after every 2 iterations it becomes 0.5 × the policy + 0.5 × itself",
        "tdpo2 on own responses",
        "6 of 6",
        "reward -",
        "the model is in run/model",
    ):
        assert text in done.output
    card = Path("run/model/README.md").read_text(encoding="utf-8")
    assert "on the best against the worst of 4 own responses to a prompt" in card and "4 prompts of p.txt" in card
    assert "the policy before training; after every 2 iterations it becomes 0.5" in card

    recipe = load_recipe("recipe.yaml", ["run_dir=stopped", moves])
    assert isinstance(recipe, OnlineRecipe)
    with pytest.raises(KeyboardInterrupt), RunDirectory.training(recipe, resume=False, overwrite=False) as run:
        train_online(recipe, run, callbacks=[StopAt(5)])
    again = call("train", "stopped", "--resume")
    assert again.exit_code == 0 and "resuming stopped from step 4" in again.output, again.output
    whole, resumed = (RunDirectory(name).metrics()[-1] for name in ("run", "stopped"))
    measured = {"reward_mean", "forward_kl", "reverse_kl", "policy_entropy"}
    assert {key: whole[key] for key in measured} == {key: resumed[key] for key in measured}

    finished = call("train", "run", "--resume")
    assert finished.exit_code == 0 and "run is finished (step 6)" in finished.output
    assert "--overwrite replaces it" in call("train", recipe_file, moves).output
    evaluated = call("evaluate", "run")
    assert evaluated.exit_code == 0 and "KLs here are to the start, and not to where it went" in evaluated.output
    judged = read_json(Path("run/evaluation.json"))
    assert judged["pairs"] is None and judged["run"]["loss"] == "tdpo2"
    assert judged["generations"]["trained"]["reward_mean"] <= 0
    reported = call("report", "run")
    assert reported.exit_code == 0, reported.output
    page = Path("run/report.html").read_text(encoding="utf-8")
    for text in ("TDPO2 on pairs of its own responses", "Pairs of an iteration", "Mean reward", "Own responses scored",
                 "moved every 2 iterations", "and fall where it moves"):  # fmt: skip
        assert text in page
    assert "No held-out pairs were evaluated" not in page and "was evaluated without held-out pairs" not in page
    [read] = load_runs([Path("run")])
    assert read.on_own_responses and not read.is_ppo and read.has_reward


def test_doctor_checks_it(call: Call, recipe_file: str) -> None:
    done = call("doctor", recipe_file)
    assert done.exit_code == 0, done.output
    for text in ("tdpo2 on ", "own responses to prompts of p.txt", "6 updates of 2 pairs: 3 iterations of 16 compl",
                 "mine.py:brevity, weight 1", "the longest prompt has"):  # fmt: skip
        assert text in done.output
    wrong = call("doctor", recipe_file, "rewards=[{function: 'mine.py:brevty'}]", "model.reference=./none")
    assert wrong.exit_code == 1 and "did you mean 'brevity'?" in wrong.output and not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "recipe.yaml"], "pairs of own responses (it has a section online and no section ppo); `tdpo train"),
        (["pairs", "recipe.yaml"], "has a section online: training with it makes its own pairs: `tdpo train rec"),
        (["train", "recipe.yaml", "online.beta=1"], "did you mean loss.beta?"),
        (["train", "recipe.yaml", "rollouts.samples_per_prompt=1"], "a pair needs two responses to a prompt"),
        (["train", "recipe.yaml", "rewards=null"], "rewards: is missing: prompts come without a reward"),
        (["train", "recipe.yaml", "rewards=[{function: 'mine.py:brevty'}]"], "did you mean 'brevity'?"),
    ],
)  # fmt: skip
def test_mistakes_end_with_a_message_and_code_2(
    call: Call, recipe_file: str, arguments: list[str], message: str
) -> None:
    done = call(*arguments)
    assert done.exit_code == 2 and message in done.output, done.output
    assert "Traceback" not in done.output and not Path("run/metrics.jsonl").exists()


def test_its_keys_and_its_example_are_printed(call: Call, tmp_path: Path) -> None:
    listed = call("recipe").output
    assert "In a recipe on pairs of own responses (it has a section online)" in listed
    of_runs, of_studies = listed.split("\nIn a study (it has arms)\n")
    assert of_runs.count("\nonline.passes  default 1") == 1 == of_studies.count("\nonline.passes  default 1")
    assert listed.count("\nrollouts.completions  ") == 1
    assert "did you mean online.minibatch_size?" in call("recipe", "online.minibatchsize").output
    (tmp_path / "mine.yaml").write_text(call("recipe", "--example", "online_sentiment").stdout, encoding="utf-8")
    shipped = load_recipe(tmp_path / "mine.yaml")
    assert isinstance(shipped, OnlineRecipe) and shipped.updates == 24
