"""What a tracker gets: every number of metrics.jsonl, under the name that the docs give it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.ppo_cases import PROMPTS, letters, make_ppo
from helpers.run_cases import go, recipe_in, write_inputs, write_rows
from helpers.tiny_models import build_model
from helpers.training_cases import make_trainer, plain_rows
from tdpo.records.json_files import read_jsonl

HEAD = {"step", "split", "time_s"}  # of a line of metrics.jsonl: a tracker has its own
OF_RUN = {"epoch"}  # which transformers gives to trackers in every log


def tensorboard_tags(folder: Path) -> dict[str, list[float]]:
    """The values of each name that was written for TensorBoard anywhere in `folder`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values: dict[str, list[float]] = {}
    for file in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            values.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
    return values


def names_expected(folder: Path) -> dict[str, list[float]]:
    """The names under which a tracker has what metrics.jsonl says: the split's, then the metric's."""
    values: dict[str, list[float]] = {}
    for line in read_jsonl(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name in HEAD | OF_RUN:
                continue
            # The summary's own names begin with "train_" already, and transformers keeps them in its train group.
            group = "eval" if line["split"] == "eval" else "train"
            values.setdefault(f"{group}/{name}", []).append(value)
    return values


def check(folder: Path, *some: str) -> None:
    expected, tracked = names_expected(folder), tensorboard_tags(folder)
    assert set(some) <= set(expected)
    assert set(expected) <= set(tracked), set(expected) - set(tracked)
    assert set(tracked) - set(expected) <= {"train/epoch", "eval/epoch"}
    for name, values in expected.items():
        assert len(tracked[name]) == len(values), name
        assert all(abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-6) for a, b in zip(tracked[name], values, strict=True))


def test_pairs(tmp_path: Path, tiny_model: Callable[..., Any], tokenizer: Any) -> None:
    trainer = make_trainer(
        tiny_model("llama"), tmp_path, tokenizer, eval_rows=plain_rows(4), report_to=["tensorboard"], logging_steps=1,
        eval_strategy="steps", eval_steps=1, max_steps=2, kl={"direction": "reverse", "coefficient": 0.1},
    )  # fmt: skip
    trainer.train()
    check(tmp_path, "train/margin", "train/chosen_forward_kl", "train/kl_term", "eval/accuracy", "eval/margin")


def test_rewards(tmp_path: Path, tokenizer: Any) -> None:
    make_ppo(
        build_model("llama"), tmp_path, tokenizer, letters, PROMPTS, report_to=["tensorboard"], iterations=1,
        eval_dataset=PROMPTS[:2], eval_strategy="steps", eval_steps=1, logging_steps=1,
    ).train()  # fmt: skip
    check(tmp_path, "train/reward_mean", "train/reverse_kl", "eval/reward_mean")


def test_the_evaluation_at_the_end_of_a_command_belongs_to_the_same_run(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    """Trackers begin another run for what is logged after they were told that the training has ended."""
    folder = write_inputs(tmp_path, tiny_folder("llama"))
    write_rows(folder / "held_out.jsonl", plain_rows(3))
    recipe = recipe_in(
        folder, f"data.eval={folder}/held_out.jsonl", "training.eval_steps=2", "training.report_to=[tensorboard]"
    )
    run = go(recipe)
    assert len(list(run.path.rglob("events.out.tfevents*"))) == 1
    lines = [line for line in read_jsonl(run.path / "metrics.jsonl") if line["split"] == "eval"]
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert len(tensorboard_tags(run.path)["eval/margin"]) == len(lines)
