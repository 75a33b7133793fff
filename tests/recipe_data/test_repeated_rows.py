"""Rows that repeat, for oversampling: kept when asked for, counted, and never on both sides of a split."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model
from helpers.training_cases import make_trainer, plain_rows, train_logs, trained_weights
from tdpo.config import Recipe, load_recipe, load_study
from tdpo.preferences import BadPreferences, load_preferences, preferences_from_dataset
from tdpo.recipe_data.pairs import prompt_key, read_data

ROWS = plain_rows(6)
OVERSAMPLED = [*ROWS, ROWS[0], ROWS[3], ROWS[0]]
BROKEN = {**ROWS[1], "chosen": None}


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe(folder: Path, rows: list[dict[str, Any]], **data: Any) -> Recipe:
    loaded = load_recipe({"run_dir": str(folder / "run"), "data": {"train": written(folder, rows), **data}})
    assert isinstance(loaded, Recipe)
    return loaded


def test_kept_rows_stand_where_they_stood_and_are_counted(tmp_path: Path) -> None:
    file = written(tmp_path, OVERSAMPLED)
    for kept in (
        load_preferences(file, repeated_rows="keep"),
        preferences_from_dataset(OVERSAMPLED, repeated_rows="keep", source=file),
    ):
        assert [row.row for row in kept.rows] == list(range(1, 10)) and kept.problems == []
        assert kept.summary()["repeated"] == kept.repeated == 3
        assert kept.remarks() == [f"{file}: 3 of 9 rows repeat an earlier one and are kept."]
    with pytest.raises(BadPreferences, match='kept with repeated_rows="keep"'):
        load_preferences(file)
    skipped = load_preferences(file, on_bad_rows="skip")
    assert skipped.skipped == 3 and skipped.repeated == 0
    assert skipped.remarks() == [f"{file}: rows that cannot be used are left out: 3 (3 × row repeats an earlier row)."]
    with pytest.raises(ValueError, match="it can be 'refuse' or 'keep'"):
        load_preferences(file, repeated_rows="twice")  # type: ignore[arg-type]
    with pytest.raises(BadPreferences) as broken:
        preferences_from_dataset([*OVERSAMPLED, BROKEN], repeated_rows="keep")
    assert [problem.row for problem in broken.value.problems] == [10]
    assert "repeated_rows" not in str(broken.value)


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_twins_together_and_counts_each_side(tmp_path: Path, seed: int) -> None:
    asked = recipe(tmp_path, OVERSAMPLED, repeated_rows="keep", eval_fraction=0.5)
    data = read_data(asked.model_copy(update={"seed": seed}))
    assert data.eval is not None and len(data.train) + len(data.eval) == 9
    train, held_out = ({prompt_key(row) for row in part.rows} for part in (data.train, data.eval))
    assert len(train) == len(held_out) == 3 and not train & held_out
    counted = [len(part) - len({prompt_key(row) for row in part.rows}) for part in (data.train, data.eval)]
    assert [data.train.repeated, data.eval.repeated] == counted and sum(counted) == 3


def test_the_trainer_keeps_and_skips_as_its_arguments_say(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def trainer(rows: Any, name: str = "run", **changes: Any) -> Any:
        return make_trainer(build_model("llama"), tmp_path / name, tokenizer, rows, **changes)

    with pytest.raises(BadPreferences, match="repeats an earlier row"):
        trainer(OVERSAMPLED)
    with pytest.raises(BadPreferences, match="chosen: is null"):
        trainer([*ROWS, BROKEN])
    caplog.set_level(logging.WARNING)
    live = trainer([*OVERSAMPLED, BROKEN], repeated_rows="keep", on_bad_rows="skip", eval_rows=ROWS[:2])
    said = [record.getMessage() for record in caplog.records]
    assert "train data: train_dataset: rows that cannot be used are left out: 1 (1 × chosen is null)." in said
    assert "train data: train_dataset: 3 of 9 rows repeat an earlier one and are kept." in said
    assert "2 of 2 held-out pairs are also trained on: their numbers are not those of new pairs." in said
    assert live._datasets.sources == ["a list in memory"], "what a cache of its reference says of its data"
    report = live.tokenization["train"]
    assert (report["pairs"], report["skipped"], report["repeated"]) == (9, 1, 3)
    cached = trainer(OVERSAMPLED, "cached", repeated_rows="keep", reference="cache")
    live.train(), cached.train()
    for one, other in zip(train_logs(live), train_logs(cached), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name, weight in trained_weights(live).items():
        torch.testing.assert_close(weight, trained_weights(cached)[name], rtol=1e-3, atol=1e-4)


def test_a_studys_copy_of_the_rows_is_read_as_the_rows_themselves(tmp_path: Path) -> None:
    from tdpo.comparison.cells import StudyFiles, cells_of, evaluation_recipe, training_recipe

    reading = {"repeated_rows": "keep", "on_bad_rows": "skip", "counted_turns": "all", "max_length": 77}
    data = {"train": written(tmp_path, OVERSAMPLED), "eval_fraction": 0.5, **reading}
    arms = [{"name": "dpo", "strengths": [0.1]}]
    study = load_study({"study_dir": str(tmp_path / "s"), "tasks": [{"name": "t", "data": data}], "arms": arms})
    files, cell = StudyFiles(tmp_path / "s"), cells_of(study)[-1]
    for of_cell in (training_recipe(study, files, cell), evaluation_recipe(study, files, cell)):
        assert isinstance(of_cell, Recipe)
        assert {key: getattr(of_cell.data, key) for key in reading} == reading
