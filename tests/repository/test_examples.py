"""Every example runs as it stands and does what it says."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MARKED = re.compile(r"^ *# README: begin\n(.*?)^ *# README: end\n", re.MULTILINE | re.DOTALL)


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    losses = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "policy and reference start equal: the loss is log 2"
    assert sum(losses[-10:]) / 10 < 0.63
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["0", "20", "40", "60"]
    assert "KL(reference‖policy), nats per sequence: chosen 0.00, rejected 0.00" in printed[0]


def test_tdpo_trainer(tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = runpy.run_path(str(EXAMPLES / "tdpo_trainer.py"))["main"](str(tiny_folder("llama")), str(tmp_path))
    assert logs[0]["loss"] == pytest.approx(0.6931, abs=1e-4), "policy and reference start equal: the loss is log 2"
    assert logs[-1]["loss"] < 0.68 and logs[-1]["accuracy"] == 1.0
    assert (tmp_path / "model/adapter_model.safetensors").exists()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(printed) == len(logs) == 4 and printed[0].endswith("nats per sequence: chosen 0.000")


def test_ppo_trainer(tiny_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = runpy.run_path(str(EXAMPLES / "ppo_trainer.py"))["main"](str(tiny_folder("llama")), str(tmp_path))
    assert logs[0]["forward_kl"] == pytest.approx(0.0, abs=1e-6) and logs[1]["forward_kl"] > 1e-3
    assert logs[0]["kl_coefficient"] == logs[1]["kl_coefficient"] == 0.1
    assert (tmp_path / "model/adapter_model.safetensors").exists()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration ")]
    assert len(printed) == 2 and "KL(reference‖policy) 0.000" in printed[0]


def marked_lines(example: str) -> str:
    """What README quotes of an example: its marked stretches, one after another."""
    return "".join(MARKED.findall((EXAMPLES / example).read_text(encoding="utf-8"))).strip("\n")


@pytest.mark.parametrize("example", ["tdpo_trainer.py", "ppo_trainer.py"])
def test_readme_quotes_the_example(example: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```py\n{marked_lines(example)}\n```" in readme, f"README differs from what examples/{example} marks"
    assert f"(examples/{example})" in readme
