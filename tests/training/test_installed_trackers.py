"""MLflow, which the suite's own environment lacks, gets every number of metrics.jsonl; skipped where it is missing.

Install it and run this file alone: pytest tests/training/test_installed_trackers.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import make_trainer, plain_rows
from tdpo.records.json_files import read_jsonl

HEAD = {"step", "split", "time_s", "epoch"}


def trained(folder: Path, tracker: str) -> dict[str, list[float]]:
    """Train a little; returns what metrics.jsonl holds, by the name in transformers' logs."""
    make_trainer(
        build_model("llama"), folder, build_tokenizer(), eval_rows=plain_rows(4), report_to=[tracker], logging_steps=1,
        eval_strategy="steps", eval_steps=1, max_steps=2, kl={"direction": "reverse", "coefficient": 0.1},
    ).train()  # fmt: skip
    values: dict[str, list[float]] = {}
    for line in read_jsonl(folder / "metrics.jsonl"):
        for name in line.keys() - HEAD:
            values.setdefault(f"eval_{name}" if line["split"] == "eval" else name, []).append(line[name])
    assert {"margin", "eval_margin", "chosen_forward_kl", "kl_term"} <= values.keys()
    return values


def test_mlflow_has_the_names_without_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    expected = trained(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    [run] = [run for e in client.search_experiments() for run in client.search_runs([e.experiment_id])]
    for name, values in expected.items():
        found = [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == pytest.approx(values), name
