"""What `TDPOTrainer` sums up between two logs, and `metrics.jsonl`, which every trainer writes."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..records.files import write_text
from ..records.json_files import append_jsonl, rewrite_log
from ..scoring.pair_metrics import PAIR_METRICS, averages
from ..scoring.readings import Reading


class TrainingMeter:
    """Sums what the updates between two logs did, on this process. Each log begins a new meter."""

    def __init__(self) -> None:
        self.sums = Reading(len(PAIR_METRICS))
        self.pairs = 0
        self.tokens = 0
        self.since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still, also where one of these is inside another: what happens is not training."""
        started, since = time.perf_counter(), self.since
        yield
        self.since = since + time.perf_counter() - started

    def add(self, table: Tensor, tokens: int) -> None:
        """Take in a micro-batch: a row of metrics for each pair (`pair_metrics`), and how many tokens it computed."""
        self.sums.add(table.sum(dim=0))
        self.pairs += table.shape[0]
        self.tokens += tokens

    def totals(self) -> Tensor:
        """Everything that adds up across processes, in one vector on the host."""
        extra = torch.tensor([self.pairs, self.tokens], dtype=torch.float64)
        return torch.cat([self.sums.values, extra])

    @staticmethod
    def pairs_of(totals: Tensor) -> int:
        """The pairs that `totals` are of."""
        return int(totals[-2])

    def averages(self, totals: Tensor) -> dict[str, float]:
        """Averages and rates, from the `totals` of all processes."""
        *_, pairs, tokens = totals.tolist()
        seconds = max(time.perf_counter() - self.since, 1e-9)
        return {
            **averages(totals[:-2], pairs),
            "tokens_per_second": tokens / seconds,
            "pairs_per_second": pairs / seconds,
            "peak_memory_mib": peak_memory_mib(),
        }


def peak_memory_mib() -> float:
    """The most memory held so far: allocated on the accelerator where there is one, else resident in the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl` in the output folder. A resumed run goes on from its checkpoint."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.started = time.perf_counter()
        self.time_before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.time_before = 0.0
        if state.global_step:
            # What was logged after the checkpoint that is resumed from will be logged again.
            lines = rewrite_log(self.path, lambda line: line.get("step", 0) <= state.global_step)
            self.time_before = max((line.get("time_s", 0.0) for line in lines), default=0.0)
        else:
            write_text(self.path, "")
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(self.path, self._line(state, logs))

    def _line(self, state: Any, logs: dict[str, Any]) -> dict[str, Any]:
        # An evaluation's keys carry its name: "eval_", or "eval_<dataset>_" where there are several.
        prefix = next((k.removesuffix("policy_entropy") for k in logs if k.endswith("_policy_entropy")), "")
        split = "summary" if "train_runtime" in logs else prefix.rstrip("_") or "train"
        numbers = {k.removeprefix(prefix): v for k, v in logs.items() if k not in ("step", "epoch")}
        seconds = self.time_before + time.perf_counter() - self.started
        head = {"step": state.global_step, "epoch": state.epoch, "split": split, "time_s": round(seconds, 3)}
        return head | numbers
