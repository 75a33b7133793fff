"""Runs the cells of a study, each in a process of its own, so that a crash of one does not touch the others.

A cell is finished when its folder says so; any other is begun or taken up again. A process that ends without a report
(killed, out of memory) is a failure like one that raises; the other cells go on.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from ..config import Study
from ..records.json_files import read_json, write_json
from ..records.names import CELL_FILE, LOG_FILE
from ..records.study_tables import CellKey
from .cells import StudyFiles, reference_cell

DONE, FAILED = "done", "failed"
Report = Callable[[str, int, int, str], None]  # stage, done, total, note
Job = Callable[[Study, StudyFiles, CellKey, Report], None]
# What the fork server loads once for all cells: their work too, whose imports take more than a second. None of ours may
# ask CUDA anything as it is imported: a forked process could then not use the GPU.
PRELOADED = ("torch", "transformers", "peft", "tdpo.comparison.work")


@dataclass(frozen=True)
class Failure:
    """A cell that is not finished: at which stage, why, and what to do about it."""

    cell: CellKey
    stage: str
    error: str
    next: str
    log: Path

    def as_dict(self, files: StudyFiles) -> dict[str, Any]:
        """The entry in about.json."""
        return {
            "cell": files.name(self.cell),
            **{key: getattr(self.cell, key) for key in ("task", "arm", "strength", "seed")},
            "stage": self.stage,
            "error": self.error,
            "next": self.next,
            "log": self.log.relative_to(files.folder).as_posix(),
        }


class Observer(Protocol):
    """Receives the events of a study while it runs."""

    def started(self, cell: CellKey) -> None: ...
    def moved(self, cell: CellKey, stage: str, done: int, total: int, note: str) -> None: ...
    def finished(self, cell: CellKey, seconds: float) -> None: ...
    def failed(self, failure: Failure) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Outcome:
    """What became of the cells that were to be done."""

    done: list[CellKey] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    waiting: list[CellKey] = field(default_factory=list)  # not begun, or stopped
    disk_full: bool = False


def is_done(files: StudyFiles, cell: CellKey) -> bool:
    """Whether a cell was finished by this or an earlier call."""
    path = files.cell(cell) / CELL_FILE
    with contextlib.suppress(ValueError):
        return path.exists() and read_json(path).get("state") == DONE
    return False


def run_cells(
    study: Study, files: StudyFiles, cells: Sequence[CellKey], job: Job, workers: int, observer: Observer
) -> Outcome:
    """Do `job` for every cell that is not done, `workers` at a time; a cell waits for its task's reference.

    The first Ctrl-C lets running cells write a checkpoint; what they did is kept. Nothing is begun once a disk is full.
    """
    return _Supervisor(study, files, job, workers, observer).run(cells)


@dataclass
class _Running:
    cell: CellKey
    process: Any
    reports: Connection
    started: float
    worker: int  # the lowest number that no other cell has, and with it a share of the GPUs
    stage: str = "starting"


class _Supervisor:
    def __init__(self, study: Study, files: StudyFiles, job: Job, workers: int, observer: Observer) -> None:
        self.study, self.files, self.job, self.workers, self.observer = study, files, job, workers, observer
        self.running: dict[int, _Running] = {}
        self.outcome = Outcome()
        # A fork server that has loaded the libraries starts a process at once.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload(list(PRELOADED))
            _start_forkserver()

    def run(self, cells: Sequence[CellKey]) -> Outcome:
        self.outcome.done = [cell for cell in cells if is_done(self.files, cell)]
        done = set(self.outcome.done)
        waiting = [cell for cell in cells if cell not in done]
        try:
            while waiting or self.running:
                if not self.outcome.disk_full:
                    self._begin(waiting)
                if not self.running:
                    break
                self._listen()
        except KeyboardInterrupt as interrupt:
            self._stop()
            settled = {*self.outcome.done, *(failure.cell for failure in self.outcome.failures)}
            self.outcome.waiting = [cell for cell in cells if cell not in settled]
            raise Stopped(self.outcome, interrupt) from None
        self.outcome.waiting += waiting
        return self.outcome

    def _begin(self, waiting: list[CellKey]) -> None:
        for cell in list(waiting):
            if len(self.running) >= self.workers:
                return
            reference = reference_cell(cell.task, cell.seed)
            if cell == reference or reference in self.outcome.done:
                waiting.remove(cell)
                self._start(cell)
            elif any(failure.cell == reference for failure in self.outcome.failures):
                waiting.remove(cell)
                advice = f"mend {self.files.name(reference)} first, then give the same command again"
                self._failed(Failure(cell, "waiting", "its reference cell failed", advice, self._log(reference)))

    def _log(self, cell: CellKey) -> Path:
        return self.files.cell(cell) / LOG_FILE

    def _start(self, cell: CellKey) -> None:
        try:
            self.files.cell(cell).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._failed(_failure_of(cell, "starting", error, self._log(cell)))
            return
        worker = min(set(range(self.workers)) - {run.worker for run in self.running.values()})
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(  # type: ignore[attr-defined]
            target=_child, args=(self.job, self.study, self.files, cell, theirs, worker), daemon=False
        )
        process.start()
        theirs.close()
        self.running[process.sentinel] = _Running(cell, process, ours, time.monotonic(), worker)
        self.observer.started(cell)

    def _listen(self) -> None:
        """Wait up to half a second for reports and ends of running cells, and record them."""
        channels: dict[Any, _Running] = {run.reports: run for run in self.running.values()}
        ready = wait([*channels, *self.running], timeout=0.5)
        for channel in ready:
            if channel in channels:
                self._hear(channels[channel])
        for channel in ready:
            if channel in self.running:
                self._ended(self.running.pop(channel))
        self.observer.tick()

    def _hear(self, run: _Running) -> None:
        with contextlib.suppress(EOFError, OSError):
            while run.reports.poll():
                kind, content = run.reports.recv()
                if kind == "moved":
                    run.stage = content[0]
                    self.observer.moved(run.cell, *content)
                elif kind == "failed":
                    stage, error, advice = content
                    self._failed(Failure(run.cell, stage, error, advice, self._log(run.cell)))

    def _ended(self, run: _Running) -> None:
        self._hear(run)
        run.process.join()
        run.reports.close()
        if is_done(self.files, run.cell):
            self.outcome.done.append(run.cell)
            self.observer.finished(run.cell, time.monotonic() - run.started)
        elif not any(failure.cell == run.cell for failure in self.outcome.failures):
            self._failed(self._silent_end(run))

    def _silent_end(self, run: _Running) -> Failure:
        code = run.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = ": the system may have run out of memory" if -code == signal.SIGKILL else ""
            error = f"its process was ended by {name}{memory}"
            advice = "give the same command again; with workers=1 it needs less memory"
        else:
            error, advice = f"its process ended with code {code}", "see its log, then give the same command again"
        return Failure(run.cell, run.stage, error, advice, self._log(run.cell))

    def _failed(self, failure: Failure) -> None:
        self.outcome.failures.append(failure)
        self.outcome.disk_full |= os.strerror(errno.ENOSPC) in failure.error
        record = {"state": FAILED, "stage": failure.stage, "error": failure.error, "next": failure.next}
        with contextlib.suppress(OSError):  # a full disk takes no record; the observer is told anyway
            write_json(self.files.cell(failure.cell) / CELL_FILE, record)
        self.observer.failed(failure)

    def _stop(self) -> None:
        """Ask running cells once to stop, as Ctrl-C does, and wait for them. A second Ctrl-C kills them."""
        for run in self.running.values():
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(run.process.pid, signal.SIGTERM)
        try:
            for run in self.running.values():
                run.process.join()
        except KeyboardInterrupt:
            for run in self.running.values():
                run.process.kill()
        self.outcome.done += [run.cell for run in self.running.values() if is_done(self.files, run.cell)]


def _start_forkserver() -> None:
    """Start the fork server with Ctrl-C ignored: a terminal sends it Ctrl-C too, and it would end with a traceback."""
    from multiprocessing import forkserver  # not everywhere

    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers, and it is the one that Ctrl-C interrupts
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, heard)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, raised again once running cells have stopped. `interrupt` is the original exception."""

    def __init__(self, outcome: Outcome, interrupt: KeyboardInterrupt) -> None:
        super().__init__()
        self.outcome, self.interrupt = outcome, interrupt


# In the process of a cell


class _Channel:
    """Sends progress to the supervisor, at most about three times a second."""

    def __init__(self, reports: Connection) -> None:
        self.reports, self.sent, self.stage = reports, 0.0, "starting"

    def moved(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if stage != self.stage or done == total or now - self.sent > 0.3:
            self.stage, self.sent = stage, now
            self.reports.send(("moved", (stage, done, total, note)))


def _child(job: Job, study: Study, files: StudyFiles, cell: CellKey, reports: Connection, worker: int) -> None:
    _end_with_parent()
    os.setsid()  # a terminal's Ctrl-C reaches the supervisor alone, which passes it on once
    signal.signal(signal.SIGTERM, _interrupted)
    channel = _Channel(reports)
    _write_output_to(files.cell(cell) / LOG_FILE)
    try:
        from ..models.devices import share_gpus

        share_gpus(worker)
        job(study, files, cell, channel.moved)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        failure = _failure_of(cell, channel.stage, error, files.cell(cell) / LOG_FILE)
        reports.send(("failed", (failure.stage, failure.error, failure.next)))
        sys.exit(1)


def _interrupted(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """End this process when the study's process ends: it would lock folders that the next call needs."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_output_to(log: Path) -> None:
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _failure_of(cell: CellKey, stage: str, error: BaseException, log: Path) -> Failure:
    text = " ".join(str(error).split())
    return Failure(
        cell, stage, f"{type(error).__name__}: {text}" if text else type(error).__name__, _advice(error), log
    )


def _advice(error: BaseException) -> str:
    again = "then give the same command again: finished cells are kept"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"free space on the disk, {again}"
    if isinstance(error, ModuleNotFoundError):
        return f"install the package, {again}"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return f"set workers=1, or smaller batches (which is another study), {again}"
    return f"mend what the error says (its traceback is in the cell's log), {again}"
