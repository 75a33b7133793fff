"""`tdpo exact`: it goes on where it was stopped, to the same bytes, and its page stands alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tdpo.cli import _exact_run
from tdpo.cli._errors import CommandError
from tdpo.cli._exact_run import ExactRun, Stopped
from tdpo.cli.app import app
from tdpo.exact import benchmark
from tdpo.exact.settings import Settings
from tdpo.exact.tabular_problems import Problem
from tdpo.exact.trees import Tree
from tdpo.report import write_exact_report

SETTINGS = Settings(trees=(Tree(3), Tree(2, 2)), finite_trees=(Tree(3),))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the problems that were computed, each in no time: two methods of every table."""
    names: list[str] = []

    def rows(problem: Problem) -> benchmark.Tables:
        names.append(problem.name)
        row = benchmark._row(problem, "dpo", 1.0, problem.reference)
        other = {**row, "method": "rewards_forward_loss", "reward": 1 / 3, "entropy": 0.5}
        finite = [
            {**row, "learner": learner, "scored": n, "distance": 0.1, "distance_sd": 0.01, "reward_sd": 0.02}
            for learner in ("ppo", "rloo")
            for n in (50, 500)
        ]
        matched = [{"matched": "reward", "target": 0.5, **r} for r in (row, other)]
        return {"infinite": [row, other], "matched": matched, "finite": finite if problem.tree == Tree(3) else []}

    monkeypatch.setattr(benchmark, "run_problem", rows)
    return names


def ignore(done: int, total: int, note: str) -> None:
    pass


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path, computed: list[str]) -> None:
    ExactRun(tmp_path / "whole", settings=SETTINGS).finish(1, ignore)
    assert len(computed) == 18 and set(tables(tmp_path / "whole")) == {"infinite.csv", "matched.csv", "finite.csv"}
    del computed[:]

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(Stopped) as stopped:
        ExactRun(tmp_path / "stopped", settings=SETTINGS).finish(1, stop)
    assert (stopped.value.done, stopped.value.total) == (5, 18) and tables(tmp_path / "stopped") == {}
    seen: list[tuple[int, int]] = []
    ExactRun(tmp_path / "stopped", settings=SETTINGS).finish(1, lambda done, total, note: seen.append((done, total)))
    assert seen[0] == (5, 18) and len(computed) == 18 == len(set(computed))
    assert tables(tmp_path / "stopped") == tables(tmp_path / "whole")


def test_a_problem_of_other_settings_is_computed_anew(tmp_path: Path, computed: list[str]) -> None:
    ExactRun(tmp_path, settings=SETTINGS).finish(1, ignore)
    ExactRun(tmp_path, settings=SETTINGS).finish(1, ignore)
    assert len(computed) == 18
    ExactRun(tmp_path, settings=Settings(trees=(Tree(3),), finite_trees=(), alpha=0.25)).finish(1, ignore)
    assert len(computed) == 27


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CommandError, match="--out takes a folder"):
        ExactRun(tmp_path / "out", settings=SETTINGS).finish(1, ignore)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    """Two real problems."""
    settings = Settings(trees=(Tree(2),), finite_trees=(), strengths=5, gains=(), most_modes=1)
    for name, workers in (("one", 1), ("two", 2)):
        run = ExactRun(tmp_path / name, settings=settings)
        run.problems = dict(list(run.problems.items())[:2])
        run.finish(workers, ignore)
    assert tables(tmp_path / "one") == tables(tmp_path / "two") != {}


def test_the_command_writes_tables_record_and_page(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_exact_run, "Settings", lambda: SETTINGS)
    done = CliRunner().invoke(app, ["exact", "--out", str(tmp_path), "--workers", "1"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["command"] == f"tdpo exact --out {tmp_path} --workers 1"
    assert about["settings"]["preference_scale"] == 4.0 and about["settings"]["trees"] == ["3^1", "2^2"]
    assert {"tdpo", "torch", "scipy"} <= about["versions"].keys() and about["settings"]["seed"] == 0
    page = (tmp_path / "report.html").read_text()
    assert (
        not re.search("https?:", page[: page.index('<script type="application/json"')])
        and "default-src &#39;none&#39;" in page
    )
    [specs] = re.findall(r'id="figure-data">(.*?)</script>', page)
    figures: list[dict[str, Any]] = json.loads(specs)
    assert len(figures) == 2 * 5 + 1 and all(f'id="{figure["id"]}"' in page for figure in figures)
    frontier = next(figure for figure in figures if figure["id"] == "tree-3-1-forward_kl")
    assert len(frontier["data"]) == 2 * 9 and {trace["xaxis"] for trace in frontier["data"]} >= {"x", "x9"}
    assert page == write_exact_report(tmp_path).read_text()  # the same tables give the same page


def test_the_page_needs_its_tables(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_exact_report(tmp_path)
