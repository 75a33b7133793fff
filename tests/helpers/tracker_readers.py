"""What a tracker has, read from its own files: the runs, and of each the values of every name in their order.

All trackers but TensorBoard write to one place for many runs. `keep_in` names it, once a process: trackio and MLflow
settle it when they are imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
# What transformers tells of the whole run, once at its end. wandb has it in the run's summary, without a group.
OF_THE_WHOLE_RUN = ("train_runtime", "train_loss", "train_samples_per_second", "train_steps_per_second", "total_flos")
OF_EVERY_LOG = ("epoch", "train/epoch", "eval/epoch", "train/global_step")  # from transformers: where a log belongs
PROJECT = "huggingface"  # transformers' default


@dataclass
class TrackedRun:
    """One run, by what trackers.json calls it (`identity`) and as its user sees it (`name`)."""

    identity: str
    name: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        self.values.setdefault(name, []).append(value)


def documented_name(tracker: str, split: str, metric: str) -> str:
    """Under which name docs/publishing.md promises a metric of a line of metrics.jsonl."""
    if tracker == "mlflow":
        return f"eval_{metric}" if split == "eval" else metric
    if tracker == "wandb" and metric in OF_THE_WHOLE_RUN:
        return metric
    return f"{'eval' if split == 'eval' else 'train'}/{metric}"


def keep_in(home: Path) -> dict[str, str]:
    """The variables that keep every tracker in `home` and off the network."""
    return {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(home),
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(home / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
    }


def tracked_runs(tracker: str, run_dir: Path) -> list[TrackedRun]:
    """The runs whose names begin as that of `run_dir` or, for TensorBoard, that lie in it."""
    return [run for run in _READERS[tracker](run_dir) if run.name.startswith(run_dir.name)]


def _of_tensorboard(run_dir: Path) -> Iterator[TrackedRun]:
    """TensorBoard's run is a folder with files of events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in sorted({file.parent for file in run_dir.rglob("events.out.tfevents*")}):
        events = EventAccumulator(str(folder)).Reload()
        run = TrackedRun(folder.relative_to(run_dir).as_posix(), folder.relative_to(run_dir.parent).as_posix())
        for tag in events.Tags()["scalars"]:
            run.values[tag] = [event.value for event in events.Scalars(tag)]
        yield run


def _of_mlflow(_: Path) -> Iterator[TrackedRun]:
    import mlflow

    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        values = {name: [metric.value for metric in history] for name, history in histories.items()}
        yield TrackedRun(run.info.run_id, run.info.run_name, values)


def _of_trackio(_: Path) -> Iterator[TrackedRun]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for run in trackio.Api().runs(PROJECT):
        tracked = TrackedRun(run.name, run.name)
        for log in SQLiteStorage.get_logs(PROJECT, run.name, run_id=run.id):
            for name in log.keys() - {"step", "timestamp"}:
                tracked.add(name, log[name])
        yield tracked


def _of_wandb(_: Path) -> Iterator[TrackedRun]:
    """Offline, every process that takes part in a run writes a file of its own; the run's id says what is one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, TrackedRun] = {}
    for file in sorted(Path(os.environ["WANDB_DIR"]).rglob("*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        run = summary = None
        for content in _leveldb_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                run_id = record.run.run_id
                run = runs.setdefault(run_id, TrackedRun(run_id, record.run.display_name))
            items = record.history.item if record.HasField("history") else ()
            for name, value in _named(items):
                assert run is not None
                run.add(name, value)
            if record.HasField("summary"):
                summary = {**(summary or {}), **dict(_named(record.summary.update))}
        for name in OF_THE_WHOLE_RUN:
            if run is not None and summary is not None and name in summary:
                run.values[name] = [summary[name]]  # a summary has the last value
    yield from runs.values()


def _named(items: Any) -> Iterator[tuple[str, Any]]:
    for item in items:
        name = item.key or ".".join(item.nested_key)
        if not name.startswith("_"):  # wandb's own: its step, and the time
            yield name, json.loads(item.value_json)


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, with wandb's seven bytes before them.

    Blocks of 32 KiB hold fragments: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last).
    """
    assert content.startswith(b":W&B"), "no file of wandb's"
    block, header = 2**15, 7
    at, parts = header, b""
    while at + header <= len(content):
        if block - at % block < header:  # nothing begins in the last bytes of a block
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):
            yield parts
            parts = b""


_READERS: dict[str, Callable[[Path], Iterator[TrackedRun]]] = {
    "tensorboard": _of_tensorboard,
    "mlflow": _of_mlflow,
    "wandb": _of_wandb,
    "trackio": _of_trackio,
}
