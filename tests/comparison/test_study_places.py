"""How many cells of a study run at a time, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.study_cases import read, write_study
from tdpo.cli._study_board import Board
from tdpo.comparison import study as study_module
from tdpo.comparison.cells import StudyFiles, cells_of
from tdpo.comparison.study import check, place_of, workers_of


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), workers=None)


@pytest.mark.parametrize(
    ("device", "workers", "cards", "count", "place"),
    [
        ("auto", None, 0, 3, "the CPU"),
        ("auto", None, 1, 1, "1 accelerator (a card)"),
        ("auto", None, 8, 8, "8 accelerators (a card)"),
        ("auto", 3, 8, 3, "3 accelerators of 8 (a card)"),
        ("cuda", 12, 8, 12, "8 accelerators (a card)"),
        ("cuda:1", None, 8, 1, "1 accelerator (a card)"),
        ("cuda:1", 2, 8, 2, "1 accelerator (a card)"),
        ("cpu", None, 8, 3, "the CPU"),
        ("cpu", 5, 8, 5, "the CPU"),
    ],
)
def test_workers_follow_from_the_device(
    device: str, workers: int | None, cards: int, count: int, place: str, study_file: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(study_module, "accelerators", lambda: [{"name": "a card"}] * cards)
    monkeypatch.setattr(study_module, "usable_cores", lambda: 7)
    study = read(
        study_file, f"model.device={device}", "threads=2", *([] if workers is None else [f"workers={workers}"])
    )
    assert (workers_of(study), place_of(study)) == (count, place)
    with Board(study):
        assert f"{count} at a time, on {place}." in capsys.readouterr().err


def test_a_device_that_is_not_there_is_said_before_a_cell_begins(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    study = read(study_file, "model.device=cuda:1")
    files, cells = StudyFiles.of(study), cells_of(study)
    with pytest.raises(ValueError, match="there is no device cuda:1 here"):
        check(study, files, cells)
    monkeypatch.setattr(study_module, "is_done", lambda files, cell: True)
    check(study, files, cells)  # a finished study is only judged anew
