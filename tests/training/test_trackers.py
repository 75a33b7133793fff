"""What a tracker gets: every number of metrics.jsonl under the name that the docs give it, in one run for a directory.

The suite's own environment has TensorBoard. `make test-trackers` runs this file where all four are installed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.run_cases import go, ppo_recipe_in, recipe_in, write_inputs, write_rows
from helpers.tracker_readers import (
    OF_EVERY_LOG,
    OF_THE_WHOLE_RUN,
    TRACKERS,
    TrackedRun,
    documented_name,
    keep_in,
    tracked_runs,
)
from helpers.training_cases import StopAt, plain_rows
from tdpo.config import AnyRecipe
from tdpo.records.json_files import read_json, read_jsonl

Folder = Callable[[str], Path]
HEAD = {"step", "epoch", "split", "time_s"}  # of a line of metrics.jsonl: a tracker has its own


@pytest.fixture(scope="module", autouse=True)
def _one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keep_in(tmp_path_factory.mktemp("trackers")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if find_spec(name) is None and not os.environ.get("TDPO_REQUIRE_TRACKERS"):
        pytest.skip(f"{name} is not installed; make test-trackers has it")
    return name


# TensorBoard's runs lie each in its own directory.
of_those_with_one_place = pytest.mark.parametrize("tracker", TRACKERS[1:], indirect=True)


def run_dir_in(folder: Path, tracker: str, test: str) -> Path:
    """A run directory whose name no other test has: most trackers keep all runs in one place."""
    return folder / f"{tracker}-{test}"


def recipe_of_pairs(run_dir: Path, tracker: str, *overrides: str) -> AnyRecipe:
    write_rows(run_dir.parent / "held_out.jsonl", plain_rows(3))
    return recipe_in(
        run_dir.parent, f"data.eval={run_dir.parent}/held_out.jsonl", "training.eval_steps=2",
        "training.logging_steps=1", f"training.report_to=[{tracker}]", f"run_dir={run_dir}", *overrides,
    )  # fmt: skip


def names_expected(tracker: str, run_dir: Path) -> dict[str, list[float]]:
    """The values of metrics.jsonl by the names under which the tracker has them."""
    values: dict[str, list[float]] = {}
    for line in read_jsonl(run_dir / "metrics.jsonl"):
        for name in line.keys() - HEAD:
            values.setdefault(documented_name(tracker, line["split"], name), []).append(line[name])
    if tracker == "wandb":  # a summary has the last value, and a run that was stopped has had another one
        values |= {name: values[name][-1:] for name in OF_THE_WHOLE_RUN if name in values}
    return values


def its_run(tracker: str, run_dir: Path, *, among: int = 1) -> TrackedRun:
    """The run of the directory, which is one; `among` so many of its name."""
    runs = tracked_runs(tracker, run_dir)
    assert len(runs) == (1 if tracker == "tensorboard" else among), [run.name for run in runs]
    [run] = [run for run in runs if run.identity == read_json(run_dir / "trackers.json")[tracker]]
    if tracker == "tensorboard":  # which names a run by where it lies
        assert run.name.startswith(f"{run_dir.name}/runs/")
    elif tracker == "trackio":  # which knows runs by their names
        assert run.name == run_dir.name or (among > 1 and run.name == f"{run_dir.name}-{among}")
    else:
        assert run.name == run_dir.name
    return run


def check(tracker: str, run_dir: Path, *some: tuple[str, str], among: int = 1) -> None:
    """The directory's run has every number; `some` are a split and a metric that must be among them."""
    run, expected = its_run(tracker, run_dir, among=among), names_expected(tracker, run_dir)
    assert {documented_name(tracker, split, name) for split, name in some} <= expected.keys()
    assert run.values.keys() - set(OF_EVERY_LOG) == expected.keys()
    precision = 1e-6 if tracker == "tensorboard" else 0.0  # TensorBoard's are float32
    for name, values in expected.items():
        assert run.values[name] == pytest.approx(values, rel=precision, abs=precision), name


def test_pairs(tmp_path: Path, tiny_folder: Folder, tracker: str) -> None:
    """The evaluation at the end of a command belongs to the run: trackers were told that the training has ended."""
    write_inputs(tmp_path, tiny_folder("llama"))
    recipe = recipe_of_pairs(
        run_dir_in(tmp_path, tracker, "pairs"), tracker, "loss.kl.direction=reverse", "loss.kl.coefficient=0.1"
    )
    run = go(recipe)
    evaluations = [line["step"] for line in read_jsonl(run.path / "metrics.jsonl") if line["split"] == "eval"]
    assert evaluations == [2, 4, 4]
    check(
        tracker, run.path, ("train", "margin"), ("train", "chosen_forward_kl"), ("train", "kl_term"),
        ("eval", "accuracy"), ("eval", "margin"), ("summary", "train_loss"),
    )  # fmt: skip


def test_rewards(tmp_path: Path, tiny_folder: Folder, tracker: str) -> None:
    folder = write_inputs(tmp_path, tiny_folder("llama"))
    recipe = ppo_recipe_in(
        folder, f"environment.held_out={folder}/prompts.jsonl", "ppo.eval_every=1", f"ppo.report_to=[{tracker}]",
        f"run_dir={run_dir_in(folder, tracker, 'rewards')}",
    )  # fmt: skip
    run = go(recipe)
    check(
        tracker, run.path, ("train", "reward_mean"), ("train", "reverse_kl"), ("eval", "reward_mean"),
        ("summary", "train_loss"),
    )  # fmt: skip


@of_those_with_one_place
def test_a_resumed_run_goes_on_in_its_own(tmp_path: Path, tiny_folder: Folder, tracker: str) -> None:
    """Though a directory of the same name was trained in meanwhile, and a setting that trackers keep has changed."""
    ours, others = (run_dir_in(tmp_path / name, tracker, "resumed") for name in ("ours", "others"))
    for run_dir in (ours, others):
        run_dir.parent.mkdir()
        write_inputs(run_dir.parent, tiny_folder("llama"))
    with pytest.raises(KeyboardInterrupt):
        go(recipe_of_pairs(ours, tracker), callbacks=[StopAt(2, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    go(recipe_of_pairs(others, tracker, "training.max_steps=1", "training.save_steps=1"))
    go(recipe_of_pairs(ours, tracker, "training.save_total_limit=3"), resume=True)
    assert [line["step"] for line in read_jsonl(ours / "metrics.jsonl") if line["split"] == "train"] == [1, 2, 3, 4]
    check(tracker, ours, ("train", "margin"), ("eval", "margin"), among=2)
    check(tracker, others, ("train", "margin"), among=2)


@of_those_with_one_place
def test_a_run_that_replaces_another_is_a_run_of_its_own(tmp_path: Path, tiny_folder: Folder, tracker: str) -> None:
    write_inputs(tmp_path, tiny_folder("llama"))
    run_dir = run_dir_in(tmp_path, tracker, "replaced")
    said: list[str] = []
    for _ in range(2):
        go(recipe_of_pairs(run_dir, tracker, "training.max_steps=2"), overwrite=True, say=said.append)
    check(tracker, run_dir, among=2)
    sentence = f"trackio has a run {run_dir.name} already; this one is {run_dir.name}-2."
    assert said.count(sentence) == (1 if tracker == "trackio" else 0)


def test_what_a_killed_run_logged_after_its_checkpoint(tmp_path: Path, tiny_folder: Folder, tracker: str) -> None:
    """It is logged again: TensorBoard has it once, the others twice with one value, as the run is the same."""
    write_inputs(tmp_path, tiny_folder("llama"))
    run_dir = run_dir_in(tmp_path, tracker, "killed")
    with pytest.raises(RuntimeError, match="killed"):
        go(recipe_of_pairs(run_dir, tracker), callbacks=[StopAt(4, killed)])
    go(recipe_of_pairs(run_dir, tracker), resume=True)
    margin = documented_name(tracker, "train", "margin")
    if tracker == "tensorboard":
        check(tracker, run_dir)
    steps = {line["step"]: line["margin"] for line in read_jsonl(run_dir / "metrics.jsonl") if line["split"] == "train"}
    expected = [steps[step] for step in ((1, 2, 3, 4) if tracker == "tensorboard" else (1, 2, 3, 3, 4))]
    assert its_run(tracker, run_dir).values[margin] == pytest.approx(expected, rel=1e-5)


def killed() -> None:
    raise RuntimeError("killed")
