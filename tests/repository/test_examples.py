"""Every example runs as it stands and does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    losses = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "policy and reference start equal: the loss is log 2"
    assert sum(losses[-10:]) / 10 < 0.63
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["0", "20", "40", "60"]
    assert "KL(reference‖policy), nats per sequence: chosen 0.00, rejected 0.00" in printed[0]
