"""The example for TRL's trainer runs as it stands and computes the paper's loss."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers.training_cases import (
    expected_logs,
    move_away,
    sequence_numbers,
)


@pytest.fixture(scope="module")
def trl_example() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "examples" / "trl_trainer.py"))


def test_the_example_for_trl_learns(trl_example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    logs = trl_example["main"]()
    printed = capsys.readouterr().out.strip().splitlines()[-len(logs) :]
    assert len(logs) == 12
    assert printed[0].startswith("step 1  loss 0.6931  accuracy 0.00")
    assert logs[-1]["loss"] < 0.57
    assert logs[-1]["accuracy"] == 1.0
    assert all(line["chosen_forward_kl"] > 0 for line in logs[1:])


def test_the_example_for_trl_computes_the_papers_loss(trl_example: dict[str, Any], tmp_path: Path) -> None:
    trainer = trl_example["make_trainer"](str(tmp_path))
    move_away(trainer.model, size=0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    numbers = []
    for pair in range(len(batch["input_ids"]) // 2):
        sides = []
        for row in (pair, len(batch["input_ids"]) // 2 + pair):
            ids = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
            answer = int(batch["completion_mask"][row].sum())
            sides.append(sequence_numbers(trainer.model, trainer.ref_model, ids[:-answer], ids[-answer:]))
        numbers.append(tuple(sides))
    expected = expected_logs(numbers, "tdpo2", beta=0.1, alpha=0.5)
    assert float(loss.detach()) == pytest.approx(expected["loss"], abs=1e-6)
    assert expected["chosen_forward_kl"] > 1e-4
