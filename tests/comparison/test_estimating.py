"""The time that a study will take: counted from its parts, from runs that are done, or measured, and said which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from helpers.study_cases import read, write_study
from tdpo.cli.app import app
from tdpo.comparison import estimating
from tdpo.comparison.cells import StudyFiles, cells_of, reference_cell, task_of
from tdpo.comparison.estimating import TaskSize, estimate, seconds_of_cell, task_size
from tdpo.comparison.running import is_done
from tdpo.config import Study
from tdpo.records.json_files import write_json
from tdpo.records.names import CELL_FILE
from tdpo.records.study_tables import CellKey
from tdpo.sampling.sampler import SamplingSettings
from tdpo.workflows import measured_speed
from tdpo.workflows.measured_speed import Speed
from tdpo.workflows.run_size import RunSize

SPEED = Speed(start=10.0, token=0.1, pair=2.0, tokens_of_pair=100, description="a made-up machine")
# A pair has 20 + 2 × 40 tokens, as the measured one.
SIZE = TaskSize(RunSize(["q"], prompt=20, response=40, pairs=8), held_out_pairs=3, asked=2, answer=5)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read(write_study(tmp_path_factory.mktemp("study")))


def files_of(study: Study) -> StudyFiles:
    return StudyFiles(Path(study.study_dir))


def test_each_part_of_a_run_is_counted(study: Study) -> None:
    """3 samples of each of 2 prompts, 2 of which have their KLs measured; a budget of 16 responses."""

    def seconds(arm: str, task: str = "letters", size: TaskSize = SIZE) -> float:
        cell = next(cell for cell in cells_of(study) if (cell.arm, cell.task) == (arm, task))
        return seconds_of_cell(study, files_of(study), cell, size, SPEED)

    answers = 2 * 3 * 5 * 0.1
    kls = 2 * 2 * (20 + 2 * 5) / 100 * 2.0 * 2 / 4
    judging = kls + 3 * 2.0 * 2 / 4
    assert seconds("reference") == pytest.approx(10 + 16 * 40 * 0.1 + answers + kls)
    assert seconds("reference", "rows") == pytest.approx(10 + answers + kls), "its preferences are there"
    assert seconds("sft") == pytest.approx(2 * 10 + 8 * 2.0 + answers + judging)
    twice = replace(SIZE, learned=replace(SIZE.learned, pairs=16))
    assert seconds("sft", size=twice) - seconds("sft") == pytest.approx(8 * 2.0)
    # 2 iterations of 8 completions of 5 tokens, two to a prompt; each is judged by two models, learned from twice.
    learning = 16 * 5 * 0.1 + 16 * (20 / 2 + 5) / 100 * 2.0 * (2 + 3 * 2) / 4
    assert seconds("ppo_forward") == pytest.approx(2 * 10 + learning + answers + judging)


def test_the_sizes_of_tasks_are_those_of_their_prompts_and_rows(study: Study) -> None:
    letters, rows = (task_size(study, task_of(study, name)) for name in ("letters", "rows"))
    assert (letters.learned.pairs, letters.asked, letters.answer, letters.learned.response) == (8, 3, 6, 6)
    assert (rows.learned.pairs, rows.held_out_pairs, rows.asked, rows.answer) == (6, 2, 2, 6)
    assert 2 < letters.learned.prompt < 20 and 2 < rows.learned.response < 15


def test_runs_that_are_done_stand_for_their_arm(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = study.model_copy(update={"study_dir": str(tmp_path)})
    cells = cells_of(here)
    monkeypatch.setattr(estimating, "measure_speed", lambda *args, **more: SPEED)
    monkeypatch.setattr(estimating, "seconds_of_cell", lambda *args: 1000.0)

    def finish(cell: CellKey, seconds: float) -> None:
        (files_of(here).cell(cell)).mkdir(parents=True)
        write_json(files_of(here).cell(cell) / CELL_FILE, {"state": "done", "seconds": {"a": seconds, "b": 1.0}})

    def estimated(say: Callable[[str], None]) -> estimating.Estimate:
        done = [cell for cell in cells if is_done(files_of(here), cell)]
        return estimate(here, files_of(here), [cell for cell in cells if cell not in done], done, say)

    said: list[str] = []
    assert estimated(said.append).seconds == 1000.0 * len(cells) and len(said) == 1
    of_tdpo2 = [cell for cell in cells if cell.arm == "tdpo2"]
    finish(of_tdpo2[0], 59.0)
    finish(of_tdpo2[1], 99.0)
    finish(reference_cell("letters", 0), 4.0)
    left = [cell for cell in cells if cell.arm not in ("tdpo2", "reference")]
    found = estimated(said.append)
    assert found.seconds == pytest.approx(1000.0 * len(left) + (len(of_tdpo2) - 2) * 80.0 + 5.0)
    assert "tdpo2: 80 s a run, as in the 2 that are done" in found.grounds
    assert found.grounds[-1] == "measured now: a made-up machine" and len(said) == 2
    for cell in left:
        finish(cell, 9.0)
    assert not any("measured" in ground for ground in estimated(said.append).grounds) and len(said) == 2


def test_a_servers_time_is_not_guessed(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(*_: object, pairs: int, responses: int) -> Speed:
        asked.append(responses)
        return replace(SPEED, token=0.0)

    monkeypatch.setattr(estimating, "measure_speed", measured)
    monkeypatch.setattr(estimating, "task_size", lambda *_: SIZE)
    engine = {"engine": "vllm", "url": "http://127.0.0.1:8000"}
    server = study.model_copy(update={"sampling": study.sampling.model_copy(update=engine)})
    cell = reference_cell("letters", 0)
    found = estimate(server, StudyFiles(tmp_path), [cell], [], lambda _: None)
    assert asked == [0] and found.grounds[-1].endswith("; the server's time to draw responses is not in it")


def test_the_dry_run_measures_and_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = write_study(tmp_path)

    def dry_run() -> str:
        done = CliRunner().invoke(app, ["compare", str(path), "--dry-run"])
        assert done.exit_code == 0, done.output
        return done.output

    said = dry_run()
    assert "14 to do\nmeasuring a few steps of" in said, said
    assert "\ntime: about " in said and " on this machine, with 2 runs at a time\n" in said
    assert (
        "  measured now: " in said
        and "on 1 thread of the CPU: loaded in " in said
        and "an update of 2 pairs of " in said
    )
    assert not (tmp_path / "study").exists(), "nothing was run"

    def too_large(*args: object, **more: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(estimating, "measure_speed", too_large)
    assert "no estimate of the time: out of memory: no room" in dry_run()


@pytest.mark.parametrize(
    ("per_token", "measured", "most"),
    [(0.01, 0.01, 8), (0.0004, 0.0004, 128), (0.0, 0.001 / 201 / 2, 200)],
    ids=["as it is", "longer", "the whole call"],
)
def test_a_speed_is_never_measured_as_nothing(
    monkeypatch: pytest.MonkeyPatch, per_token: float, measured: float, most: int
) -> None:
    """A call takes 1 ms and so much for each of its steps; two responses are sampled at a time."""
    clock, asked = [0.0], []

    def sample(_policy: object, _tokenizer: object, prompts: list[str], settings: SamplingSettings) -> list[object]:
        asked.append(settings.max_new_tokens - 1)
        clock[0] += 0.001 + per_token * len(prompts) * settings.max_new_tokens
        return [SimpleNamespace(token_ids=range(settings.max_new_tokens)) for _ in prompts]

    monkeypatch.setattr(measured_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(measured_speed, "sample", sample)
    seconds, length = measured_speed._seconds_of_token(None, None, ["a", "b"], 200)
    assert seconds == pytest.approx(measured) and seconds > 0
    assert length == asked[-1] == most
