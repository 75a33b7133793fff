"""A study whose responses a server draws: what is asked of it first, and what a cell keeps when it goes away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.study_cases import read, write_study
from helpers.vllm_stand_in import VLLM, running_vllm
from tdpo.comparison.cells import StudyFiles, reference_cell
from tdpo.comparison.running import is_done
from tdpo.comparison.work import do_cell
from tdpo.config import Study
from tdpo.records.json_files import read_json
from tdpo.records.study_tables import CellKey
from tdpo.runs import RunDirectory
from tdpo.sampling.vllm.client import ServerError, WrongServer

REFERENCE = reference_cell("letters", 0)
PROBES = 5  # two of the vocabulary; greedy completions of the base, with random weights, and of the adapter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient")]


def study_on(vllm: VLLM, folder: Path) -> tuple[Study, StudyFiles]:
    alone: dict[str, Any] = dict.fromkeys(("rollouts", "online", "ppo", "target_direction", "best_of", "temperatures"))
    path = write_study(folder, arms=[{"name": "tdpo2", "strengths": [0.1]}], **alone)
    study = read(path, "sampling.engine=vllm", f"sampling.url={vllm.url}")
    study = study.model_copy(update={"tasks": study.tasks[:1]})
    return study, StudyFiles.of(study)


def test_a_server_that_takes_no_adapter_is_found_before_pairs_are_drawn(tmp_path: Path) -> None:
    with running_vllm(max_rank=1) as vllm:
        study, files = study_on(vllm, tmp_path)
        with pytest.raises(WrongServer, match="--max-lora-rank 2"):
            do_cell(study, files, REFERENCE, lambda *_: None)
        assert not any(body.get("seed") for body in vllm.asked) and not vllm.adapters


def test_a_cell_whose_server_goes_away_keeps_its_training(vllm: VLLM, tmp_path: Path) -> None:
    study, files = study_on(vllm, tmp_path)
    cell = CellKey("letters", "tdpo2", "0.1", 0)
    do_cell(study, files, REFERENCE, lambda *_: None)
    vllm.broken = {len(vllm.asked) + PROBES + 4 + n: "gone" for n in range(50)}  # among the trained model's answers
    with pytest.raises(ServerError, match="did not answer"):
        do_cell(study, files, cell, lambda *_: None)
    run = RunDirectory(files.run(cell))
    assert run.status()["state"] == "finished" and not is_done(files, cell) and not vllm.adapters
    lines, before = len(run.metrics()), len(vllm.asked)
    vllm.broken = {}
    do_cell(study, files, cell, lambda *_: None)
    assert is_done(files, cell) and len(run.metrics()) == lines, "it was not trained again"
    assert len(vllm.asked) - before == PROBES + 9, "the base's answers are those of the reference cell"
    assert read_json(run.path / "evaluation.json")["settings"]["engine"] == "vLLM 0.0.stand-in, model /models/tiny"
