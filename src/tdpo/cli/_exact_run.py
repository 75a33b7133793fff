"""Computation of the exact benchmark: several problems at a time, each saved as soon as it is finished."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ..exact import benchmark
from ..exact.settings import Settings
from ..exact.tabular_problems import all_problems, make_problem
from ..exact.trees import Tree
from ..records.files import write_text
from ..records.json_files import read_json, write_json
from ..runs import hardware, usable_cores, versions
from ._console import Update
from ._errors import CommandError

PACKAGES = ("tdpo", "torch", "numpy", "scipy")
DEFAULT_MOST_WORKERS = 2
Key = tuple[Tree, str, str]  # tree, shape, rewards


class Stopped(KeyboardInterrupt):
    """The run was interrupted. `interrupt` is the original exception, Ctrl-C or SIGTERM."""

    def __init__(self, done: int, total: int, interrupt: KeyboardInterrupt) -> None:
        super().__init__()
        self.done, self.total, self.interrupt = done, total, interrupt


class ExactRun:
    """A folder with a file for every finished problem in problems/, and with tables once all problems are finished."""

    def __init__(self, folder: Path, *, settings: Settings | None = None, command: str = "tdpo exact") -> None:
        self.folder, self.settings, self.command = folder, settings or Settings(), command
        self.problems: dict[str, Key] = {
            problem.name: (problem.tree, problem.shape, problem.reward) for problem in all_problems(self.settings)
        }
        self.tables: list[str] = []
        # A finished problem is kept only if its file records the same settings and versions.
        self.provenance: dict[str, Any] = {
            "settings": self.settings.record(), "versions": versions(PACKAGES)
        }  # fmt: skip

    def finish(self, workers: int, update: Update) -> float:
        """Compute the problems that are not finished, and write the tables. Returns the seconds of all problems.

        Raises:
            Stopped: Ctrl-C or SIGTERM.
            CommandError: the folder is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise CommandError(f"{self.folder} is a file; --out takes a folder")
        (self.folder / "problems").mkdir(parents=True, exist_ok=True)
        waiting = [name for name in self.problems if not self._is_done(name)]
        done, total = len(self.problems) - len(waiting), len(self.problems)
        update(done, total, "")
        try:
            with _pool(min(workers or min(usable_cores(), DEFAULT_MOST_WORKERS), len(waiting))) as run:
                for name, tables, seconds in run(self.settings, {name: self.problems[name] for name in waiting}):
                    write_json(self._file(name), {**self.provenance, "seconds": seconds, "tables": tables})
                    done += 1
                    update(done, total, name)
        except KeyboardInterrupt as interrupt:
            raise Stopped(done, total, interrupt) from None
        return self._write()

    def _file(self, name: str) -> Path:
        return self.folder / "problems" / f"{name.replace('^', '_').replace(' ', '-')}.json"

    def _is_done(self, name: str) -> bool:
        path = self._file(name)
        if not path.exists():
            return False
        record = read_json(path)
        return isinstance(record, dict) and all(
            record.get(key) == _plain(value) for key, value in self.provenance.items()
        )

    def _write(self) -> float:
        finished = {name: read_json(self._file(name)) for name in self.problems}
        for name in benchmark.TABLES:
            rows = [row for record in finished.values() for row in record["tables"][name]]
            if rows:
                write_text(self.folder / f"{name}.csv", benchmark.table_text(rows))
                self.tables.append(f"{name}.csv")
        seconds = sum(float(record["seconds"]) for record in finished.values())
        about = {
            "title": "Exact benchmark",
            "command": self.command,
            **self.provenance,
            "hardware": hardware(),
            "problems": list(self.problems),
            "methods": benchmark.methods_record(),
            "seconds_of_all_problems": round(seconds, 1),
        }
        write_json(self.folder / "about.json", about)
        return seconds


def _plain(value: Any) -> Any:
    """Return `value` as JSON would return it, with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


Results = Iterator[tuple[str, benchmark.Tables, float]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Any]:
    """Yield a function that computes problems and gives (name, tables, seconds) of each as it is finished.

    A single worker is this process itself.
    """
    if workers <= 1:
        yield lambda settings, keys: ((name, *_compute(settings, key)) for name, key in keys.items())
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_quiet_and_mortal)
    try:
        yield lambda settings, keys: _as_they_come(pool, settings, keys)
    except BaseException:
        for process in list(pool._processes.values()):  # nothing is lost: results are written by this process
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _as_they_come(pool: Executor, settings: Settings, keys: dict[str, Key]) -> Results:
    futures: dict[Future[tuple[benchmark.Tables, float]], str] = {
        pool.submit(_compute, settings, key): name for name, key in keys.items()
    }
    for future in as_completed(futures):
        yield (futures[future], *future.result())


def _compute(settings: Settings, key: Key) -> tuple[benchmark.Tables, float]:
    """Return the tables of a problem and the seconds that they took.

    One thread is used: tables this small are slower on several, and their sums would differ in the last bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        return benchmark.run_problem(make_problem(*key, settings)), time.process_time() - started
    finally:
        torch.set_num_threads(threads)


def _quiet_and_mortal() -> None:
    """Set up a worker: it ignores Ctrl-C, ends at once at SIGTERM, and ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
