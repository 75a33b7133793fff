"""The problems of the exact benchmark, some at a time, each kept once it is finished."""

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
from ..exact.problems import all_problems, make_problem
from ..exact.settings import Settings
from ..exact.trees import Tree
from ..runs import hardware, read_json, usable_cores, versions, write_json, write_text
from ._console import Update
from ._errors import CommandError

PACKAGES = ("tdpo", "torch", "numpy", "scipy")
MOST_WORKERS = 2  # unless more are asked for
Key = tuple[Tree, str, str]  # tree, shape, rewards


class Stopped(KeyboardInterrupt):
    """Ctrl-C; `interrupt` is what it was, for whoever tells its kinds apart."""

    def __init__(self, done: int, total: int, interrupt: KeyboardInterrupt) -> None:
        super().__init__()
        self.done, self.total, self.interrupt = done, total, interrupt


class ExactRun:
    """A folder with a file for every finished problem in problems/, and tables once all are."""

    def __init__(self, folder: Path, *, settings: Settings | None = None, command: str = "tdpo exact") -> None:
        self.folder, self.settings, self.command = folder, settings or Settings(), command
        self.problems: dict[str, Key] = {
            problem.name: (problem.tree, problem.shape, problem.reward) for problem in all_problems(self.settings)
        }
        self.tables: list[str] = []
        # What a file of a finished problem must have been made with to be taken over.
        self.made_with: dict[str, Any] = {
            "settings": self.settings.record(), "versions": versions(PACKAGES)
        }  # fmt: skip

    def finish(self, workers: int, update: Update) -> float:
        """Compute what is not yet finished, then write the tables. Returns the seconds of all problems together.

        Raises:
            Stopped: Ctrl-C or SIGTERM. CommandError: the folder is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise CommandError(f"{self.folder} is a file; --out takes a folder")
        (self.folder / "problems").mkdir(parents=True, exist_ok=True)
        waiting = [name for name in self.problems if not self._is_done(name)]
        done, total = len(self.problems) - len(waiting), len(self.problems)
        update(done, total, "")
        try:
            with _pool(min(workers or min(usable_cores(), MOST_WORKERS), len(waiting))) as run:
                for name, tables, seconds in run(self.settings, {name: self.problems[name] for name in waiting}):
                    write_json(self._file(name), {**self.made_with, "seconds": seconds, "tables": tables})
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
        kept = read_json(path)
        return isinstance(kept, dict) and all(kept.get(key) == _plain(value) for key, value in self.made_with.items())

    def _write(self) -> float:
        finished = {name: read_json(self._file(name)) for name in self.problems}
        for name in benchmark.TABLES:
            rows = [row for kept in finished.values() for row in kept["tables"][name]]
            if rows:
                write_text(self.folder / f"{name}.csv", benchmark.table_text(rows))
                self.tables.append(f"{name}.csv")
        seconds = sum(float(kept["seconds"]) for kept in finished.values())
        about = {
            "title": "Exact benchmark",
            "command": self.command,
            **self.made_with,
            "hardware": hardware(),
            "problems": list(self.problems),
            "methods": benchmark.methods_record(),
            "seconds_of_all_problems": round(seconds, 1),
        }
        write_json(self.folder / "about.json", about)
        return seconds


def _plain(value: Any) -> Any:
    """`value` as it comes back from JSON, which knows lists and no tuples."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


Results = Iterator[tuple[str, benchmark.Tables, float]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Any]:
    """A function that gives (name, tables, seconds) of every problem as it is finished; one worker is this process."""
    if workers <= 1:
        yield lambda settings, keys: ((name, *_compute(settings, key)) for name, key in keys.items())
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_quiet_and_mortal)
    try:
        yield lambda settings, keys: _as_they_come(pool, settings, keys)
    except BaseException:
        for process in list(pool._processes.values()):  # nothing is lost: results are written here
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
    """The tables of a problem, and the seconds that they took.

    One thread: tables this small are slower on several, and sums then differ in the last bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        return benchmark.run_problem(make_problem(*key, settings)), time.process_time() - started
    finally:
        torch.set_num_threads(threads)


def _quiet_and_mortal() -> None:
    """A worker leaves Ctrl-C to its parent, ends at once when told to, and does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
